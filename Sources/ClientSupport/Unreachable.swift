internal import Glibc

/// The service does not answer on its socket.
package struct Unreachable: Error {
    /// Names the socket and the reason.
    package let message: String

    package init(message: String) { self.message = message }

    /// `path`: of the control socket; `errnoValue`: what its connect, or its open, failed with.
    init(_ path: String, _ errnoValue: Int32) {
        let reason = String(cString: strerror(errnoValue))
        guard errnoValue == EACCES || errnoValue == EPERM else {
            self.init(path, reason)
            return
        }
        self.init(
            message:
                "control socket \(path): \(reason). Only \(Self.owner(of: path)) may use it: run the "
                + "command as that user (sudo), or name the socket of a service of your own with "
                + "--control")
    }

    /// `reason`: why, for people.
    init(_ path: String, _ reason: String) {
        self.init(
            message:
                "the service at \(path) is not reachable (\(reason)); start it with "
                + "`stillpoint serve`, or name its socket with --control")
    }

    /// Who owns the socket, or the directory that hides it.
    private static func owner(of path: String) -> String {
        var place = path
        var facts = stat()
        while stat(place, &facts) != 0 {
            guard let slash = place.lastIndex(of: "/"), slash != place.startIndex else {
                return "its owner"
            }
            place = String(place[..<slash])
        }
        // The directory that hides the socket is below the last one that can be seen.
        guard place == path || facts.st_mode & S_IXOTH == 0, let user = getpwuid(facts.st_uid)
        else { return "its owner" }
        return "user \(String(cString: user.pointee.pw_name))"
    }
}
