import RingIO
import Testing

@Suite struct `Shares of a pool` {
    /// How a rule decides: amount, held, earned, free.
    typealias Rule = @Sendable (Int, Int, Int, Int) -> Bool

    private static let shares = PoolShares(capacity: 192 << 20, reserveDivisor: 3, unit: 4096)

    private static func rule(_ amount: Int, _ held: Int, _ earned: Int, _ free: Int) -> Bool {
        shares.allow(amount, held: held, earned: earned, free: free)
    }

    /// Rules with a mistake. The first is that of 0.1.0.
    private static let planted: [(name: String, rule: Rule)] = [
        ("first loans are unconditional", { $1 == 0 ? $0 <= $3 : $1 + $0 <= $3 }),
        ("nothing is kept for guarantees", { $0 <= $3 && ($1 == 0 || $1 <= $3 - $0) }),
        (
            "the guarantee is not looked at",
            { amount, held, earned, free in
                let left = free - amount - shares.capacity / 3
                return left >= shares.capacity / 8 && held <= left
            }
        ),
        (
            "half of what is kept for guarantees is lent",
            { amount, held, earned, free in
                amount <= free
                    && (held + amount <= shares.guarantee || free - amount >= shares.capacity / 6)
            }
        ),
    ]

    /// A thousand users take what they get, at random, and few give anything back: how often one
    /// that would have stayed within its guarantee was refused.
    private func refusalsWithinGuarantee(_ rule: Rule, seed: UInt64) -> Int {
        var random = SeededGenerator(seed: seed)
        var held = [Int](repeating: 0, count: PoolShares.userCountMax)
        var free = Self.shares.capacity
        var refused = 0
        for round in 0..<40_000 {
            let user = Int.random(in: 0..<held.count, using: &random)
            if user % 7 == 0, round % 3 == 0, held[user] > 0 {
                free += held[user]
                held[user] = 0
                continue
            }
            let amount = 4096 << Int.random(in: 0...10, using: &random)
            let earned = user % 5 == 0 ? Int.max : user << 14
            if rule(amount, held[user], earned, free), amount <= free {
                held[user] += amount
                free -= amount
            } else if held[user] + amount <= Self.shares.guarantee {
                refused += 1
            }
        }
        // At last everybody wants what it may count on.
        for user in held.indices {
            while held[user] + 4096 <= Self.shares.guarantee {
                guard rule(4096, held[user], 0, free), free >= 4096 else {
                    refused += 1
                    break
                }
                held[user] += 4096
                free -= 4096
            }
        }
        return refused
    }

    @Test(arguments: [1, 2, 3] as [UInt64])
    func `within its guarantee nobody is ever refused`(seed: UInt64) {
        #expect(Self.shares.guarantee == 64 << 10)
        #expect(refusalsWithinGuarantee(Self.rule, seed: seed) == 0)
    }

    @Test(arguments: 0..<planted.count)
    func `a rule with a mistake is found out`(number: Int) {
        let planted = Self.planted[number]
        #expect(refusalsWithinGuarantee(planted.rule, seed: 1) > 0, "\(planted.name)")
    }

    @Test(arguments: [1, 16, 200, 999])
    func `users that give nothing back leave room for those that do`(count: Int) {
        var free = Self.shares.capacity
        // What the sockets of a client took in before they were full does not count for much.
        let earned = 10 << 20
        for _ in 0..<count {
            var held = 0
            while Self.rule(1 << 20, held, earned, free) {
                held += 1 << 20
                free -= 1 << 20
            }
        }
        // One that has read 1 GiB goes on with several requests of 1 MiB, a new one with small
        // ones.
        var held = 0
        while held < 4 << 20, Self.rule(1 << 20, held, 1 << 30, free) {
            held += 1 << 20
            free -= 1 << 20
        }
        #expect(held == 4 << 20)
        #expect(Self.rule(64 << 10, 0, 0, free))
    }

    @Test func `all of a pool that is not in use can be had, and no more than is free`() {
        let small = PoolShares(capacity: 64 << 20, reserveDivisor: 3, unit: 4096)
        #expect(small.allow(64 << 20, held: 0, earned: 0, free: 64 << 20))
        #expect(!small.allow(64 << 20, held: 0, earned: .max, free: (64 << 20) - 4096))
        #expect(!small.allow(8192, held: 0, earned: .max, free: 4096))
    }

    @Test func `a user alone gets half of what is not kept for others`() {
        var free = Self.shares.capacity
        var held = 0
        while Self.rule(1 << 20, held, 0, free) {
            held += 1 << 20
            free -= 1 << 20
        }
        #expect(held == 64 << 20)
    }

    @Test func `what a user was trusted with is more than what it earned`() {
        let free = Self.shares.capacity / 3 + (4 << 20)
        #expect(Self.rule(1 << 20, 0, .max, free))
        #expect(!Self.rule(1 << 20, 0, 1 << 40, free))
    }
}
