internal import ControlDocuments
internal import ExportNBD
internal import Glibc
internal import Host

// `serve --check`: what the configuration names is looked at, and nothing is opened, made or taken.
// A service that runs with the same configuration is not a problem.

extension ServiceConfiguration {
    /// What would keep a service of this configuration from starting, one sentence each. Blocks.
    package func problems() -> [String] {
        var problems: [String] = []
        for (option, path) in [("state-dir", stateDirectory), ("runtime-dir", runtimeDirectory)] {
            if let reason = Self.directoryProblem(path) { problems.append("\(option): \(reason)") }
        }
        let sockets = nbd.compactMap { address -> String? in
            if case .unix(let path) = address { path } else { nil }
        }
        for path in (passed.control == nil ? [control] : []) + sockets {
            if let reason = Self.socketProblem(path) { problems.append(reason) }
        }
        for request in attach {
            if let reason = Self.originProblem(request) { problems.append(reason) }
        }
        for address in nbd {
            if let reason = NBDServer.listenProblem(address.endpoint, exposureRefusal) {
                problems.append(reason)
            }
        }
        return problems + (page?.problems(encryption) ?? [])
    }

    private static func directoryProblem(_ path: String) -> String? {
        var facts = stat()
        var nearest = path
        // What is missing is made at the start, so what counts is the nearest that is there.
        while stat(nearest, &facts) != 0 {
            let reason = errno
            guard reason == ENOENT, nearest != "/" else {
                return "\(nearest): \(errnoText(reason))"
            }
            nearest = parent(of: nearest)
        }
        guard facts.st_mode & S_IFMT == S_IFDIR else { return "\(nearest) is not a directory" }
        guard access(nearest, W_OK | X_OK) == 0 else {
            return "directory \(nearest) is not writable by this user"
        }
        return nil
    }

    private static func socketProblem(_ path: String) -> String? {
        if let reason = directoryProblem(parent(of: path)) { return "socket \(path): \(reason)" }
        var facts = stat()
        guard lstat(path, &facts) == 0, facts.st_mode & S_IFMT != S_IFSOCK else { return nil }
        return "socket \(path) exists and is not a socket; remove it or name another"
    }

    private static func originProblem(_ request: AttachRequest) -> String? {
        var facts = stat()
        guard stat(request.path, &facts) == 0 else {
            return "device \(request.name): origin \(request.path): \(errnoText(errno))"
        }
        let kind = facts.st_mode & S_IFMT
        guard kind == S_IFREG || kind == S_IFBLK else {
            return "device \(request.name): origin \(request.path) is neither a file nor a block "
                + "device"
        }
        guard access(request.path, request.isReadOnly ? R_OK : R_OK | W_OK) == 0 else {
            return "device \(request.name): origin \(request.path): \(errnoText(errno))"
        }
        return nil
    }

    private static func parent(of path: String) -> String {
        guard let slash = path.lastIndex(of: "/"), slash != path.startIndex else { return "/" }
        return String(path[..<slash])
    }
}
