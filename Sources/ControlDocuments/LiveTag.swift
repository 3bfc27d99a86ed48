/// A tag of a filesystem or partition, such as `UUID=...`, by which a live device may be named.
package enum LiveTag {
    private static let folders = [
        "UUID": "by-uuid", "LABEL": "by-label", "PARTUUID": "by-partuuid",
        "PARTLABEL": "by-partlabel", "ID": "by-id",
    ]

    /// It is of the form `UUID=...`.
    package static func isOne(_ text: String) -> Bool {
        guard let split = text.firstIndex(of: "=") else { return false }
        return folder(of: text[..<split]) != nil
    }

    /// The directory of /dev/disk whose links have these tags as names.
    package static func folder(of kind: Substring) -> String? { folders[String(kind)] }
}
