internal import DataPlane
internal import ExportBlock
internal import RingIO
internal import Freezing

// The errands of the service: what may wait for its own block devices. See `ErrandProcess`.

/// Runs an errand in its own process, given its arguments; returns the exit status.
package func runErrand(_ words: [String]) -> Int32 {
    ErrandProcess.begin()
    switch (words.first, words.count) {
    case (BlockErrand.command, 2...):
        guard let errand = BlockErrand(Array(words.dropFirst())) else { return 2 }
        ErrandProcess.answer(errand.perform())
    case (FreezeErrand.command, 2...): FreezeErrand.run(Array(words.dropFirst()))
    case (ErrandProcess.thawCommand, 2):
        ErrandProcess.answer(["done"] + FrozenFilesystems.thaw(listedIn: words[1]))
    case (_, _): return 2
    }
    return 0
}
