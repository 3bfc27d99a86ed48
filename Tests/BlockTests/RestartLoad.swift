import Foundation
import Glibc
import Synchronization
import TestSupport

/// Writers of a mounted filesystem that must see no error while services come and go: a log that is
/// synced line by line, blocks that carry generations and are written past the page cache, and fio
/// with checksums.
final class RestartLoad: Sendable {
    private struct State {
        var failures: [String] = []
        var pauses: [Double] = []
        var lineCount = 0
        var generationCount = 0
    }

    private let directory: String
    private let isOver = Atomic<Bool>(false)
    private let isFinished = Atomic<Bool>(false)
    private let state = Mutex(State())

    init(in directory: String) { self.directory = directory }

    /// Starts the writers; call the result to end them and get what went wrong.
    func start(seconds: Int) -> () throws -> [String] {
        let log = Background { self.writeLog() }
        let checkers = (0..<4).map { index in Background { self.checkGenerations(index) } }
        let path = directory
        let fio = Background {
            defer { self.isFinished.store(true, ordering: .relaxed) }
            return try Command.run(
                "fio",
                [
                    "--name=restart", "--directory=\(path)", "--size=48M", "--rw=randrw",
                    "--bsrange=4k-1M", "--ioengine=libaio", "--direct=1", "--iodepth=8",
                    "--verify=crc32c", "--verify_fatal=1", "--time_based",
                    "--runtime=\(seconds)",
                ], deadline: Double(seconds) + 300)
        }
        return {
            let outcome = try fio.value(within: Double(seconds) + 300)
            self.isOver.store(true, ordering: .relaxed)
            _ = try log.value(within: 60)
            for checker in checkers { _ = try checker.value(within: 60) }
            if outcome.status != 0 { self.fail("fio: \(outcome.output)\(outcome.diagnostics)") }
            return self.state.withLock { $0.failures }
        }
    }

    /// fio has ended: it is time to stop disturbing.
    var hasFinished: Bool { isFinished.load(ordering: .relaxed) }

    /// Pauses of the log above 50 ms, in seconds, in order of length.
    var pauses: [Double] { state.withLock { $0.pauses.sorted() } }

    var summary: String {
        state.withLock { "\($0.lineCount) synced lines, \($0.generationCount) generations" }
    }

    private func fail(_ sentence: String) { state.withLock { $0.failures.append(sentence) } }

    // MARK: The log

    private func writeLog() {
        let file = open(directory + "/log", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o600)
        guard file >= 0 else { return fail("the log cannot be opened: \(errno)") }
        defer { close(file) }
        var number = 0
        while !isOver.load(ordering: .relaxed) {
            let line = Array("\(number)\n".utf8)
            let begin = monotonicSeconds()
            guard write(file, line, line.count) == line.count, fsync(file) == 0 else {
                return fail("the log's line \(number): \(String(cString: strerror(errno)))")
            }
            number += 1
            let pause = monotonicSeconds() - begin
            state.withLock { state in
                state.lineCount = number
                if pause > 0.05 { state.pauses.append(pause) }
            }
        }
    }

    /// Throws unless every line that was synced is there, in order.
    func checkLog(in directory: String) throws {
        let text = try String(contentsOfFile: directory + "/log", encoding: .utf8)
        let count = state.withLock { $0.lineCount }
        let lines = text.split(separator: "\n").prefix(count)
        guard lines.count == count, lines.enumerated().allSatisfy({ "\($0)" == $1 }) else {
            throw TestFailure("the log has \(lines.count) good lines of \(count)")
        }
    }

    // MARK: Generations

    private func checkGenerations(_ index: Int) {
        let file = open(
            directory + "/blocks-\(index)", O_RDWR | O_CREAT | O_CLOEXEC | 0o40000, 0o600)
        guard file >= 0 else { return fail("blocks cannot be opened: \(errno)") }
        defer { close(file) }
        var memory: UnsafeMutableRawPointer?
        guard posix_memalign(&memory, 4096, 4096) == 0, let memory else { return }
        defer { free(memory) }
        let words = memory.bindMemory(to: UInt64.self, capacity: 512)
        var generations = [UInt64](repeating: 0, count: 256)
        var generator = SeededGenerator(seed: UInt64(index))
        while !isOver.load(ordering: .relaxed) {
            let block = Int.random(in: 0..<generations.count, using: &generator)
            if generations[block] > 0 {
                guard pread(file, memory, 4096, off_t(block * 4096)) == 4096 else {
                    return fail("block \(block): \(String(cString: strerror(errno)))")
                }
                let expected = Self.word(block, generations[block])
                guard (0..<512).allSatisfy({ words[$0] == expected }) else {
                    return fail("block \(block) is not of generation \(generations[block])")
                }
            }
            let next = Self.word(block, generations[block] + 1)
            for place in 0..<512 { words[place] = next }
            guard pwrite(file, memory, 4096, off_t(block * 4096)) == 4096 else {
                return fail("block \(block): \(String(cString: strerror(errno)))")
            }
            generations[block] += 1
            state.withLock { $0.generationCount += 1 }
        }
    }

    private static func word(_ block: Int, _ generation: UInt64) -> UInt64 {
        UInt64(block) << 32 | generation
    }
}

/// What the kernel's log says about a loop device from now on.
final class KernelLog {
    private let file: Int32

    /// Where the log may not be read, it says so and knows of nothing.
    init() {
        file = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC)
        if file < 0 {
            print("the kernel's log is not looked at: \(String(cString: strerror(errno)))")
        }
        lseek(file, 0, SEEK_END)
    }

    deinit { close(file) }

    /// Lines that name the device (`loopN`) and an error.
    func errors(of device: String) -> [String] {
        var lines: [String] = []
        var bytes = [UInt8](repeating: 0, count: 8192)
        while true {
            let count = read(file, &bytes, bytes.count)
            // EPIPE: lines were overwritten before they were read.
            if count < 0, errno == EPIPE { continue }
            guard count > 0 else { return lines }
            let line = String(decoding: bytes[..<count], as: UTF8.self)
            let names = line.split { !$0.isLetter && !$0.isNumber }.map(String.init)
            if names.contains(device), line.contains("rror") { lines.append(line) }
        }
    }
}
