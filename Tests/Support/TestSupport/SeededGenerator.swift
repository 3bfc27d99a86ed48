import Foundation

/// Random numbers that can be reproduced from their seed (splitmix64).
package struct SeededGenerator: RandomNumberGenerator {
    package let seed: UInt64
    private var state: UInt64

    package init(seed: UInt64) {
        self.seed = seed
        state = seed
    }

    /// A fresh seed, or that of STILLPOINT_SEED; printed, so that a failure can be repeated.
    package static func announced(_ purpose: String) -> SeededGenerator {
        let given = ProcessInfo.processInfo.environment["STILLPOINT_SEED"].flatMap { UInt64($0) }
        let seed = given ?? UInt64.random(in: 1...UInt64(UInt32.max))
        print("\(purpose): STILLPOINT_SEED=\(seed)")
        return SeededGenerator(seed: seed)
    }

    package mutating func next() -> UInt64 {
        // Wrapping is the algorithm's definition.
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }

    /// `count` random bytes, none of whose 8-byte words is zero.
    package mutating func bytes(_ count: Int) -> [UInt8] {
        let wordCount = (count + 7) / 8
        var result = [UInt8](repeating: 0, count: wordCount * 8)
        result.withUnsafeMutableBytes { buffer in
            for index in 0..<wordCount {
                buffer.storeBytes(of: next() | 1, toByteOffset: index * 8, as: UInt64.self)
            }
        }
        result.removeLast(result.count - count)
        return result
    }
}
