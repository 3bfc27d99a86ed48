import Glibc
import Synchronization

/// A loop device whose number no other device gets, detached when the object goes. It can leave and
/// come back over the same or another file, as a disk that is pulled and plugged in, or that is found
/// again after a restart of the machine; the kernel counts its I/O from zero then.
///
/// A number that `losetup --find` gave may be given to another test as soon as the device is
/// detached. This one is removed as long as it is away, and its number is too high to be the next.
package final class NumberedLoopDevice: Sendable {
    private static let count = Atomic<Int32>(0)
    // linux/loop.h
    private static let setFile: UInt = 0x4C00
    private static let clearFile: UInt = 0x4C01
    private static let addNumber: UInt = 0x4C80
    private static let removeNumber: UInt = 0x4C81

    package let path: String
    private let number: Int32
    private let ticket: Int

    package init(over file: String) throws {
        let turn = Self.count.wrappingAdd(1, ordering: .relaxed).newValue
        // Below the 2^20 minor numbers that Linux has.
        number = 1000 + getpid() % 4000 * 256 + turn % 256
        path = "/dev/loop\(number)"
        ticket = ExitCleanup.shared.register("losetup --detach \(path)")
        try come(over: file)
    }

    deinit {
        if (try? leave()) != nil { ExitCleanup.shared.withdraw(ticket) }
    }

    /// Makes the device over `file`.
    package func come(over file: String) throws {
        let backing = open(file, O_RDWR | O_CLOEXEC)
        guard backing >= 0 else { throw TestFailure("\(file): errno \(errno)") }
        defer { close(backing) }
        try Self.control(Self.addNumber, number)
        let device = open(path, O_RDWR | O_CLOEXEC)
        guard device >= 0 else { throw TestFailure("\(path): errno \(errno)") }
        defer { close(device) }
        guard ioctl(device, Self.setFile, backing) == 0 else {
            throw TestFailure("\(path) over \(file): errno \(errno)")
        }
    }

    /// Takes the device away. Does nothing when it is away.
    package func leave() throws {
        let device = open(path, O_RDWR | O_CLOEXEC)
        guard device >= 0 else { return }
        let cleared = ioctl(device, Self.clearFile, 0)
        let reason = errno
        close(device)
        guard cleared == 0 || reason == ENXIO else {
            throw TestFailure("\(path) cannot be detached: errno \(reason)")
        }
        try Self.control(Self.removeNumber, number)
    }

    /// udev or another program may have the device open for a moment.
    private static func control(_ request: UInt, _ number: Int32) throws {
        let control = open("/dev/loop-control", O_RDWR | O_CLOEXEC)
        guard control >= 0 else { throw TestFailure("/dev/loop-control: errno \(errno)") }
        defer { close(control) }
        let end = monotonicSeconds() + 30
        while ioctl(control, request, number) < 0 {
            guard errno == EBUSY, monotonicSeconds() < end else {
                throw TestFailure("loop device \(number), request \(request): errno \(errno)")
            }
            sched_yield()
        }
    }
}
