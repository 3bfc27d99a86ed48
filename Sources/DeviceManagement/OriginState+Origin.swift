internal import ControlDocuments
internal import DataPlane

extension OriginState {
    init(_ name: OriginName) {
        self =
            switch name {
            case .origin: .present
            case .replaced: .replaced
            case .deleted: .deleted
            }
    }
}
