internal import BlockModel
internal import NBDWire

// The meta contexts of an export by name: `base:allocation`, and two names for each cut since
// which changes can be asked for. Names of cuts hold no colon, so a query is understood by its
// beginning: what a handshake costs grows with its queries, not with the checkpoints there are.

/// Names of meta contexts and what they stand for.
enum NBDMetaContexts {
    /// A context of an export.
    struct Context {
        var name: String
        /// What changed since this cut, or allocation when nil.
        var base: TrackingBase?
    }

    static let allocation = NBD.allocationContext
    /// The name that QEMU's tools know and the one of our own, in the order they are listed.
    static let changePrefixes = ["qemu:dirty-bitmap:", "stillpoint:changes:"]

    /// What `SET_META_CONTEXT` selects: exact names, each once, in the order of the queries.
    static func selected(by queries: [String], of export: ExportDescription) -> [Context] {
        var chosen: [Context] = []
        var names: Set<String> = []
        for query in queries {
            guard let context = context(named: query, of: export),
                chosen.count < NBDNegotiation.contextCountMax, names.insert(query).inserted
            else { continue }
            chosen.append(context)
        }
        return chosen
    }

    /// What `LIST_META_CONTEXT` tells: exact names, all below a namespace that ends with a colon,
    /// or everything when nothing is asked for.
    static func listed(by queries: [String], of export: ExportDescription) -> [Context] {
        func isListed(_ prefix: String) -> Bool {
            queries.isEmpty || queries.contains { $0.hasSuffix(":") && prefix.hasPrefix($0) }
        }
        var chosen = selected(by: queries, of: export)
        var names = Set(chosen.map(\.name))
        if isListed("base:"), names.insert(allocation).inserted {
            chosen.insert(Context(name: allocation, base: nil), at: 0)
        }
        guard let bases = export.bases else { return chosen }
        // Clients that take the only one there is must not see it twice.
        let prefixes = changePrefixes.prefix(bases.isSingle ? 1 : changePrefixes.count)
            .filter(isListed)
        guard !prefixes.isEmpty else { return chosen }
        for entry in bases.newest(NBDNegotiation.listedCountMax / prefixes.count) {
            for prefix in prefixes where names.insert(prefix + entry.name).inserted {
                chosen.append(Context(name: prefix + entry.name, base: entry.base))
            }
        }
        return chosen
    }

    private static func context(named name: String, of export: ExportDescription) -> Context? {
        if name == allocation { return Context(name: name, base: nil) }
        for prefix in changePrefixes where name.hasPrefix(prefix) {
            return export.bases?.base(named: name.dropFirst(prefix.count)).map {
                Context(name: name, base: $0)
            }
        }
        return nil
    }
}
