package import ControlDocuments
internal import Host
internal import CLinux
internal import Glibc

// Giving up root.
//
// The service opens what needs root (origins, listening ports, directories) as root, and continues
// as another user from just before it says `ready`. glibc changes the user in every thread of the
// process at once, so it does not matter that loops and pools run already (`cl_become_user` cares
// for the main thread, which libdispatch has retired); what the kernel says of each thread is
// checked afterwards. What is open stays open.
//
// Invariants
// - After `take` no thread of this process has a user, group or capability of before.
// - Ownership is given away only of files that root made in the service's own directories: not
//   through symbolic links, and not of files that have another name elsewhere.

/// The user the service continues as.
package struct ServiceUser: Sendable, Equatable {
    package let name: String
    let id: uid_t
    let group: gid_t

    /// Looks a user up. Blocks.
    package init(named name: String) throws(ControlError) {
        guard geteuid() == 0 else {
            throw ControlError(
                .invalid, "--user \(name): only root can give up being root; leave it out")
        }
        var entry = passwd()
        var found: UnsafeMutablePointer<passwd>?
        let capacity = 65_536
        let buffer = UnsafeMutablePointer<CChar>.allocate(capacity: capacity)
        defer { buffer.deallocate() }
        let result = getpwnam_r(name, &entry, buffer, capacity, &found)
        guard result == 0, found != nil else {
            throw ControlError(.invalid, "--user \(name): this system has no such user")
        }
        guard entry.pw_uid != 0 else {
            throw ControlError(.invalid, "--user \(name) is root; leave it out to stay root")
        }
        self.name = name
        id = entry.pw_uid
        group = entry.pw_gid
    }

    // MARK: Directories

    /// Refuses a directory that is there and belongs to somebody else than root and this user.
    func checkDirectory(_ path: String) throws(ControlError) {
        var facts = stat()
        guard stat(path, &facts) == 0 else { return }
        guard facts.st_uid == 0 || facts.st_uid == id else {
            throw ControlError(
                .invalid,
                "directory \(path) belongs to neither root nor \(name); name another one, or give "
                    + "it over (chown -R \(name) \(path))")
        }
    }

    /// Gives a directory of the service, and what root made in it, to this user.
    func own(_ path: String) throws(ControlError) {
        let directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW)
        guard directory >= 0 else { throw failed(path, errno) }
        defer { close(directory) }
        guard let names = SystemFile.names(inOpen: directory) else { throw failed(path, errno) }
        for name in names {
            try own(entry: name, of: directory, path + "/" + name)
        }
        guard fchown(directory, id, group) == 0 else { throw failed(path, errno) }
    }

    /// Gives sockets that this process made to this user.
    func ownSockets(_ paths: [String]) throws(ControlError) {
        for path in paths where lchown(path, id, group) != 0 { throw failed(path, errno) }
    }

    private func own(
        entry: String, of directory: Int32, _ path: String
    ) throws(ControlError) {
        let descriptor = cl_open_entry(directory, entry)
        guard descriptor >= 0 else {
            // Gone meanwhile, as temporary files go.
            if errno == ENOENT { return }
            throw failed(path, errno)
        }
        defer { close(descriptor) }
        var facts = stat()
        guard fstat(descriptor, &facts) == 0 else { throw failed(path, errno) }
        guard facts.st_uid == 0 else { return }
        switch facts.st_mode & S_IFMT {
        case S_IFDIR: try own(path)
        case S_IFREG, S_IFSOCK:
            guard facts.st_nlink == 1 else { return }
            guard cl_give_away(descriptor, id, group) == 0 else {
                throw failed(path, errno)
            }
        default: break
        }
    }

    // MARK: The process

    /// Continues as this user, for good.
    func take() throws(ControlError) {
        guard cl_become_user(name, id, group) == 0 else {
            throw ControlError(
                .failed, "the service cannot continue as \(name): \(errnoText(errno))")
        }
        try checkThreads()
    }

    private func checkThreads() throws(ControlError) {
        guard setuid(0) != 0 else {
            throw ControlError(.failed, "the service could still become root again, so it stops")
        }
        let threads = SystemFile.names(in: "/proc/self/task")
        guard !threads.isEmpty else { throw failed("/proc/self/task", ENOENT) }
        for thread in threads {
            let bytes: [UInt8]?
            do throws(HostError) {
                bytes = try readWhole("/proc/self/task/\(thread)/status", byteCountMax: 65_536)
            } catch {
                // A thread that ended while it was looked at has no user.
                if error.errnoValue == ESRCH { continue }
                throw ControlError(.failed, "the service cannot continue as \(name): \(error)")
            }
            guard let bytes else { continue }
            guard isGivenUp(String(decoding: bytes, as: UTF8.self)) else {
                throw ControlError(
                    .failed,
                    "thread \(thread) of the service does not run as \(name); the service stops")
            }
        }
    }

    /// What the kernel says of a thread: all four user and group ids, and no capability.
    private func isGivenUp(_ status: String) -> Bool {
        status.split(separator: "\n").allSatisfy { line in
            let fields = line.split(separator: "\t")
            return switch fields.first {
            case "Uid:": fields.dropFirst().allSatisfy { $0 == "\(id)" }
            case "Gid:": fields.dropFirst().allSatisfy { $0 == "\(group)" }
            case "CapPrm:", "CapEff:": fields.dropFirst().allSatisfy { UInt64($0, radix: 16) == 0 }
            default: true
            }
        }
    }

    private func failed(_ path: String, _ reason: Int32) -> ControlError {
        ControlError(.failed, "\(path) cannot be given to \(name): \(errnoText(reason))")
    }

    // MARK: Afterwards

    /// An error as it stands in an answer: where the system refused what root may do, the reason is
    /// that the service is not root. The rooms below hand on the system's words and know nothing
    /// of users.
    func explained(_ error: ControlError) -> ControlError {
        let refusals = [errnoText(EACCES), errnoText(EPERM)]
        guard refusals.contains(where: error.message.contains) else { return error }
        return ControlError(
            error.code,
            "\(error.message); not permitted in this mode: the service runs as \(name) (--user), so "
                + "give \(name) access, or attach it at the start",
            details: error.details)
    }
}
