package import BlockModel
package import RingIO

/// What is asked about a device: which bytes changed between two cuts, or all it holds.
package struct ChangesQuery: Sendable {
    /// The cut after which changes count.
    package enum Since: Sendable {
        /// No cut: all that a full backup has to read.
        case everything
        /// The start of the present generation.
        case generation
        case base(TrackingBase)
    }

    package var since: Since
    /// The part of a snapshot whose cut ends the question; nil: now.
    package var until: LoopConfined<SnapshotPart>?
    /// The bytes that are of interest.
    package var offset: UInt64 = 0
    package var length: UInt64?
    /// Most ranges of an answer.
    package var rangeCountMax = 4096
    /// What the answer before this one said: nothing of it may have changed.
    package var expected = Expectation(generation: nil, untilEpoch: nil)

    /// What an answer named, and its continuation has to find again.
    package struct Expectation: Equatable, Sendable {
        package var generation: Generation?
        package var untilEpoch: UInt32?

        package init(generation: Generation?, untilEpoch: UInt32?) {
            self.generation = generation
            self.untilEpoch = untilEpoch
        }

        /// Whether the slice names the same.
        package func isMet(by slice: ChangesSlice) -> Bool {
            (generation ?? slice.generation) == slice.generation
                && (untilEpoch ?? slice.untilEpoch) == slice.untilEpoch
        }
    }

    /// What changed since then until now.
    package init(since: Since) { self.since = since }

    /// The epoch that ended at the cut of `since`; nil when there is none.
    package var sinceEpoch: UInt32? {
        switch since {
        case .everything: nil
        case .generation: 0
        case .base(let base): base.epoch.rawValue
        }
    }
}

/// An answer, or a part of one.
package struct ChangesPage: Sendable {
    package var generation: Generation
    /// The epoch that ended at the cut of `until`, or the one that changes are marked in now.
    package var untilEpoch: UInt32
    /// Bytes of the device at `until`.
    package var size: UInt64
    /// Maximal ranges, ascending; those at the ends of the page are cut where the question ends.
    package var ranges: [ByteRange]
    /// Where the next page begins; nil when this is the last.
    package var nextOffset: UInt64?

    /// A page with these facts.
    package init(
        generation: Generation, untilEpoch: UInt32, size: UInt64, ranges: [ByteRange],
        nextOffset: UInt64?
    ) {
        self.generation = generation
        self.untilEpoch = untilEpoch
        self.size = size
        self.ranges = ranges
        self.nextOffset = nextOffset
    }
}

/// Why a question about changes, or a mark, is refused.
package enum ChangesRefusal: Error, Equatable, Sendable {
    /// Another generation, or one that was lost.
    case generationUnknown
    /// The change map holds what cannot be: its generation ends.
    case damaged
    /// The device passed to another epoch since the page before.
    case changed
    /// The cut of `since` was made after that of `until`.
    case sinceIsLater
    /// The snapshot was only prepared.
    case notTaken
    /// The snapshot is gone.
    case notHeld
    /// The image lost data, and with it what changed before its cut.
    case corrupted
    /// The origin could not say where its holes are.
    case failed(Fault)
    /// A mark reaches beyond the device's end.
    case beyondEnd(size: UInt64)
    /// No memory for the pages of the change map that a mark needs.
    case noMemory
    /// A held snapshot cannot remember so many marks.
    case tooManyForSnapshot
    /// The loop or the blocking pool does not take more at the moment.
    case busy
}
