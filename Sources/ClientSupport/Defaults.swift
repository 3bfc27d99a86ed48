package import ControlDocuments
internal import Glibc

/// Where things are by default.
package enum Defaults {
    /// An environment variable; an empty one counts as not set.
    package static func environment(_ name: String) -> String? {
        guard let value = getenv(name), value.pointee != 0 else { return nil }
        return String(cString: value)
    }

    /// The control socket: of the system's service for root, of the user's session for others.
    package static func control() throws(ControlError) -> String {
        if let path = environment("STILLPOINT_CONTROL") { return path }
        if geteuid() == 0 { return "/run/stillpoint/control.sock" }
        guard let directory = environment("XDG_RUNTIME_DIR") else {
            throw ControlError(
                .invalid,
                "the place of the control socket is not known: set XDG_RUNTIME_DIR or "
                    + "STILLPOINT_CONTROL, or give --control")
        }
        return directory + "/stillpoint/control.sock"
    }

    /// The state directory.
    package static func stateDirectory() throws(ControlError) -> String {
        if geteuid() == 0 { return "/var/lib/stillpoint" }
        if let directory = environment("XDG_STATE_HOME") { return directory + "/stillpoint" }
        guard let home = environment("HOME") else {
            throw ControlError(
                .invalid,
                "the place of the state directory is not known: set HOME or give --state-dir")
        }
        return home + "/.local/state/stillpoint"
    }

    /// `path` made absolute, without looking at the disk.
    package static func absolute(_ path: String) throws(ControlError) -> String {
        guard !path.isEmpty else { throw ControlError(.invalid, "the path is empty; give a path") }
        if path.hasPrefix("/") { return path }
        guard let directory = getcwd(nil, 0) else {
            let reason = String(cString: strerror(errno))
            throw ControlError(
                .failed, "the working directory is unknown (\(reason)); give an absolute path")
        }
        defer { free(directory) }
        return String(cString: directory) + "/" + path
    }
}
