import Glibc

extension ChildProcess {
    /// Starts a shell script, with a pipe as its standard input, in a mount namespace of its own.
    ///
    /// A new namespace holds copies of all mounts, and those of other tests would stay in use there
    /// after those tests have unmounted them: the copies go before the script begins. Until then a
    /// device may be in use for a moment longer than its test expects, so tests that detach what
    /// they have unmounted wait for `waitUntilUnused`.
    package convenience init(inMountNamespace script: String) throws {
        let copies = "awk '/stillpoint-test/ { print $5 }' /proc/self/mountinfo"
        try self.init(
            "unshare",
            [
                "--mount", "--propagation", "private", "sh", "-c",
                "\(copies) | sort -r | xargs -r umount -l\n" + script,
            ], withInput: true)
    }
}

/// Waits until no mount holds a block device that was unmounted here: another test's namespace may
/// have a copy of the mount for a moment (see `ChildProcess.init(inMountNamespace:)`).
package func waitUntilUnused(_ device: String, deadline seconds: Double) throws {
    let end = monotonicSeconds() + seconds
    while true {
        let descriptor = open(device, O_RDONLY | O_CLOEXEC | O_EXCL)
        if descriptor >= 0 {
            close(descriptor)
            return
        }
        // Whether it can be opened at all is for the test to find out.
        guard errno == EBUSY else { return }
        guard monotonicSeconds() < end else {
            throw TestFailure("\(device) is in use \(seconds) s after it was unmounted")
        }
        usleep(1000)
    }
}
