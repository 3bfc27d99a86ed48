import BlockModel
import ExportNBD

/// Cuts of the tests: the first name ended epoch 1, each later one the next.
struct TestBases: Sendable {
    let generation = Generation(id: .random())
    let list: ExportBases

    init(_ names: [String]) {
        let generation = generation
        list = ExportBases(
            names.enumerated().map { index, name in
                ExportBases.Entry(
                    name: name,
                    base: TrackingBase(
                        generation: generation, epoch: Epoch(UInt32(index + 1)), size: 1 << 30))
            }, generation: generation)
    }

    /// The cut that ended `epoch`.
    func base(_ epoch: UInt32) -> TrackingBase {
        TrackingBase(generation: generation, epoch: Epoch(epoch), size: 1 << 30)
    }
}
