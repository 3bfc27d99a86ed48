internal import ControlDocuments
internal import Origins

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
