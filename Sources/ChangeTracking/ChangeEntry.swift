// What the change map knows about one chunk, in 8 bytes: {E, B, R}.
//
//     63            32 31        16 15         0
//     | E: last epoch | B: blocks   | R: reach  |
//
// Invariants
// - Zero means never changed.
// - Else 1 <= R <= E, B != 0, and E is at most the map's current epoch.
// - B holds every block changed in the epochs (E - R, E].

/// One entry of the change map.
@usableFromInline package struct ChangeEntry: Equatable, Sendable {
    @usableFromInline package let rawValue: UInt64

    @inlinable package init(rawValue: UInt64) { self.rawValue = rawValue }

    /// Traps when the invariants do not hold.
    package init(epoch: UInt32, blocks: UInt16, reach: UInt16) {
        precondition(epoch > 0, "a changed chunk has an epoch")
        precondition(blocks != 0, "a changed chunk names its changed blocks")
        precondition(reach > 0, "an entry covers its own epoch")
        precondition(UInt32(reach) <= epoch, "an entry cannot reach before the first epoch")
        rawValue = UInt64(epoch) << 32 | UInt64(blocks) << 16 | UInt64(reach)
    }

    /// The chunk was never changed.
    package static let unchanged = ChangeEntry(rawValue: 0)

    /// Epoch of the last change, 0 when there was none.
    @inlinable package var epoch: UInt32 { UInt32(truncatingIfNeeded: rawValue >> 32) }

    /// Blocks changed in the epochs (epoch - reach, epoch].
    package var blocks: UInt16 { UInt16(truncatingIfNeeded: rawValue >> 16) }

    /// How many epochs, counted back from `epoch`, `blocks` speaks for.
    package var reach: UInt16 { UInt16(truncatingIfNeeded: rawValue) }

    /// False when no marking can have made this entry by epoch `current`: the map is damaged.
    package func isPossible(atEpoch current: UInt32) -> Bool {
        if rawValue == 0 { return true }
        return epoch > 0 && epoch <= current && blocks != 0 && reach > 0
            && UInt32(reach) <= epoch
    }

    /// The entry after `added` blocks change in epoch `current`; `newestBase` is the epoch that
    /// ended at the newest cut still usable as a base, 0 when there is none. An impossible entry
    /// stays as it is, so that queries keep finding the damage.
    @inlinable package func marking(
        _ added: UInt16, current: UInt32, newestBase: UInt32
    ) -> ChangeEntry {
        if epoch == current {
            return ChangeEntry(rawValue: rawValue | UInt64(added) << 16)
        }
        return markingFirst(added, current: current, newestBase: newestBase)
    }

    /// The same for the chunk's first change in this epoch.
    @usableFromInline func markingFirst(
        _ added: UInt16, current: UInt32, newestBase: UInt32
    ) -> ChangeEntry {
        let last = epoch
        guard last < current, isPossible(atEpoch: last) else { return self }
        let gap = current &- last
        if last > newestBase {
            // Nothing changed between the two epochs, so the older blocks stay exact.
            let reached = UInt64(reach) &+ UInt64(gap)
            return ChangeEntry(
                epoch: current, blocks: blocks | added, reach: UInt16(min(reached, 65535)))
        }
        // No usable base lies before the old blocks' epoch and after the one before: forget them.
        return ChangeEntry(epoch: current, blocks: added, reach: UInt16(min(gap, 65535)))
    }

    /// The blocks that changed after the cut that ended epoch `base`: all when it is not known
    /// more exactly.
    package func blocksChanged(since base: UInt32) -> UInt16 {
        if epoch <= base { return 0 }
        return epoch &- UInt32(reach) <= base ? blocks : .max
    }
}
