/// The hooks of a snapshot, as asked for.
package struct HookOptions: Equatable, Sendable {
    /// Absolute paths.
    package let pre: String?
    package let post: String?
    package let limitSeconds: UInt64

    /// Longest time for a hook unless something else is asked for.
    package static let limitSecondsDefault: UInt64 = 30
    /// Longest time that can be asked for.
    package static let limitSecondsMax: UInt64 = 3600

    package static let none = HookOptions(pre: nil, post: nil)

    private init(pre: String?, post: String?) {
        self.pre = pre
        self.post = post
        limitSeconds = Self.limitSecondsDefault
    }

    /// Checks what came from outside.
    package init(_ document: HooksDocument) throws(ControlError) {
        for (name, path) in [("pre", document.pre), ("post", document.post)] {
            guard let path else { continue }
            guard path.hasPrefix("/"), !path.utf8.contains(0), path.utf8.count < 4096 else {
                throw ControlError(
                    .invalid, "\(name) hook \"\(path)\": give the absolute path of a program")
            }
        }
        let limit = document.timeoutSeconds ?? Self.limitSecondsDefault
        guard (1...Self.limitSecondsMax).contains(limit) else {
            throw ControlError(
                .invalid,
                "a time limit of \(limit) s for a hook: give 1 to \(Self.limitSecondsMax) seconds")
        }
        pre = document.pre
        post = document.post
        limitSeconds = limit
    }
}
