internal import ClientSupport
internal import ControlDocuments
internal import CopyTargets

extension Defaults {
    /// The name of a copy: a path is made absolute, an export or RBD image stays what it is.
    static func place(_ name: String) throws(ControlError) -> String {
        CopyPlace.isRemote(name) ? name : try absolute(name)
    }
}
