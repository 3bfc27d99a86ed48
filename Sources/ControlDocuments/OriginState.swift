/// How the origin of a device stands.
package enum OriginState: String, Codable, Sendable {
    /// It is there, and its path names it.
    case present
    /// The device is gone: requests fail, snapshots are corrupted.
    case gone
    /// Its path names another file or device.
    case replaced
    /// Its path names nothing.
    case deleted

    /// What people should know; nil when all is well.
    package func sentence(path: String) -> String? {
        switch self {
        case .present: nil
        case .gone:
            "the origin \(path) is gone: requests fail; when it is back, detach the device and "
                + "attach it again"
        case .replaced:
            "\(path) was replaced: clients still use the origin that was attached, but its path names "
                + "another one; detach the device and attach the one that is meant"
        case .deleted:
            "\(path) was deleted or renamed: clients still use it, and when the device is detached "
                + "what they wrote may be lost; copy the device first"
        }
    }
}
