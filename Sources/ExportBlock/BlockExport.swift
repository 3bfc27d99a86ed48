package import BlockModel
internal import CLinux
internal import Glibc
internal import Host
package import RingIO
internal import Synchronization

// A local block device for a target: a loop device over the one file of a FUSE filesystem that is
// answered on the target's loop.
//
//   /dev/loopN ── loop driver, direct I/O ── FUSE ── session on the target's loop ── target
//
// Invariants
// - What waits for our own FUSE runs in a process of its own (`BlockErrand`), what closes its
//   descriptor on `BlockPools.closing`; neither on a loop.
// - Somebody else (`BlockHolding`) has the open /dev/fuse from before the mount until the session
//   has ended: whatever becomes of this process, the users of the device wait for the next one.
// - The loop device goes before the session where the device is detached, after it where it is
//   cut off; the mount goes last.

/// Where blocking calls of block exports run.
package struct BlockPools: Sendable {
    /// Calls that end soon.
    package let closing: BlockingPool
    /// Waits for errands.
    package let waiting: BlockingPool

    package init(closing: BlockingPool, waiting: BlockingPool) {
        self.closing = closing
        self.waiting = waiting
    }
}

/// Who keeps a block device from failing while no service answers it.
package struct BlockHolding: Sendable {
    /// Takes a reference of its own to an open /dev/fuse.
    let hold: @Sendable (Int32) async -> Void
    /// Gives it up; called while the session is ending or after it.
    let release: @Sendable () async -> Void

    package init(
        hold: @escaping @Sendable (Int32) async -> Void,
        release: @escaping @Sendable () async -> Void
    ) {
        self.hold = hold
        self.release = release
    }
}

/// What a block device is wanted for.
package struct BlockExportRequest: Sendable {
    /// Name of the file under the loop device: the target's name.
    package var name: String
    /// Directory made for its mount; its parent exists.
    package var directory: String
    package var loop: LoopThread
    package var target: LoopConfined<BlockTarget>
    package var sectorBytes: UInt32
    package var isReadOnly: Bool
    /// Partitions become block devices too.
    package var scansPartitions: Bool

    package init(
        name: String, directory: String, loop: LoopThread, target: LoopConfined<BlockTarget>,
        sectorBytes: UInt32, isReadOnly: Bool, scansPartitions: Bool
    ) {
        self.name = name
        self.directory = directory
        self.loop = loop
        self.target = target
        self.sectorBytes = sectorBytes
        self.isReadOnly = isReadOnly
        self.scansPartitions = scansPartitions
    }
}

/// A block device of a service that has ended.
package struct BlockAdoption: Sendable {
    /// The loop device that its users have.
    package var path: String
    package var deviceNumber: UInt64
    /// The open /dev/fuse, which is taken over.
    package var descriptor: Int32
    /// Nothing that the former service read was left unanswered.
    package var isDrained: Bool

    package init(path: String, deviceNumber: UInt64, descriptor: Int32, isDrained: Bool) {
        self.path = path
        self.deviceNumber = deviceNumber
        self.descriptor = descriptor
        self.isDrained = isDrained
    }
}

/// A local block device; see the head of this file.
package final class BlockExport: Sendable {
    /// `/dev/loopN`.
    package let path: String
    /// Device number, as in `st_rdev`.
    package let deviceNumber: UInt64
    private let directory: String
    /// What is behind the loop device.
    private let file: String
    private let loop: LoopThread
    private let session: LoopConfined<FuseSession>
    private let holding: BlockHolding
    private let pools: BlockPools

    private init(
        path: String, deviceNumber: UInt64, _ request: BlockExportRequest,
        session: LoopConfined<FuseSession>, holding: BlockHolding, pools: BlockPools
    ) {
        self.path = path
        self.deviceNumber = deviceNumber
        directory = request.directory
        file = request.directory + "/" + request.name
        loop = request.loop
        self.session = session
        self.holding = holding
        self.pools = pools
    }

    // MARK: Open

    /// Makes a block device. `ended` is called once, when its session has ended: because it was
    /// detached, cut off or handed over, because its target closes, or because the mount was taken
    /// away.
    package static func open(
        _ request: BlockExportRequest, holding: BlockHolding, pools: BlockPools,
        ended: @escaping @Sendable () -> Void
    ) async throws(BlockExportError) -> BlockExport {
        let mount = try await mount(request, holding, pools)
        guard let session = await serve(mount.channel, request, pools, ended) else {
            await unmount(mount.directory, pools, closing: mount.channel)
            await holding.release()
            throw isFull(request)
        }
        let nodeRequest = LoopNodeRequest(
            file: mount.file, name: request.name, sectorBytes: request.sectorBytes,
            isReadOnly: request.isReadOnly, scansPartitions: request.scansPartitions)
        do throws(BlockExportError) {
            let node = try await BlockErrand.configure(nodeRequest).run(on: pools.waiting)
            guard node.count == 2, let number = UInt64(node[1]) else {
                throw BlockExportError(.failed, "the loop device could not be set up")
            }
            return BlockExport(
                path: node[0], deviceNumber: number, request, session: session,
                holding: holding, pools: pools)
        } catch {
            await close(session, on: request.loop)
            await holding.release()
            await unmount(mount.directory, pools, closing: nil)
            throw error
        }
    }

    private static func mount(
        _ request: BlockExportRequest, _ holding: BlockHolding, _ pools: BlockPools
    ) async throws(BlockExportError) -> FuseMount {
        let (directory, name) = (request.directory, request.name)
        let descriptor = try await run(pools.closing) { () throws(BlockExportError) -> Int32 in
            try FuseMount.openDevice()
        }
        await holding.hold(descriptor)
        do throws(BlockExportError) {
            return try await run(pools.closing) { () throws(BlockExportError) -> FuseMount in
                try FuseMount.mount(descriptor, at: directory, fileName: name)
            }
        } catch {
            await holding.release()
            throw error
        }
    }

    private static func isFull(_ request: BlockExportRequest) -> BlockExportError {
        BlockExportError(
            .busy,
            "\(request.name) is being detached, or its loop has as many users as it may; try "
                + "again, or close one")
    }

    private static func serve(
        _ channel: FuseChannel, _ request: BlockExportRequest, _ pools: BlockPools,
        _ ended: @escaping @Sendable () -> Void
    ) async -> LoopConfined<FuseSession>? {
        let outcome = await request.loop.mailbox.run { loop -> LoopConfined<FuseSession>? in
            let session = FuseSession(
                channel: channel, name: request.name,
                target: request.target.get(on: loop), isReadOnly: request.isReadOnly, loop: loop,
                blocking: pools.closing, ended: ended)
            return session.start() ? LoopConfined(session, on: loop) : nil
        }
        return outcome ?? nil
    }

    // MARK: Adopt

    /// Continues with a block device of a service that has ended: what that one read and did not
    /// answer is done and answered first. Everything of it must have left the kernel, which who has
    /// locked the origin knows. `ended` as of `open`.
    package static func adopt(
        _ adoption: BlockAdoption, _ request: BlockExportRequest, holding: BlockHolding,
        pools: BlockPools, ended: @escaping @Sendable () -> Void
    ) async throws(BlockExportError) -> BlockExport {
        let channel = try await run(pools.closing) { () throws(BlockExportError) -> FuseChannel in
            do throws(BlockExportError) {
                if !adoption.isDrained { try sendAgain(adoption) }
                return try FuseChannel.watching(adoption.descriptor)
            } catch {
                Glibc.close(adoption.descriptor)
                throw error
            }
        }
        guard let session = await serve(channel, request, pools, ended) else {
            _ = await pools.closing.run { channel.close() }
            throw isFull(request)
        }
        return BlockExport(
            path: adoption.path, deviceNumber: adoption.deviceNumber, request, session: session,
            holding: holding, pools: pools)
    }

    private static func sendAgain(_ adoption: BlockAdoption) throws(BlockExportError) {
        guard cl_fuse_resend(adoption.descriptor) != 0 else { return }
        let reason = errno
        throw BlockExportError(
            .failed,
            reason == EINVAL
                ? "\(adoption.path): the service was killed, and this kernel cannot say what it had "
                    + "under way (Linux 6.9 can); its users get errors"
                : "\(adoption.path): \(SystemFile.errorText(reason))")
    }

    // MARK: Close

    /// Writes back what the kernel holds and takes the device away; refused as busy while it is in
    /// use. Returns what the write-back failed with: the device is gone all the same.
    package func detach() async throws(BlockExportError) -> Fault? {
        let answer = try await BlockErrand.detach(path, file: file).run(on: pools.waiting)
        await Self.close(session, on: loop)
        await holding.release()
        await Self.unmount(directory, pools, closing: nil)
        guard let failure = answer.first.flatMap({ Int32($0) }), failure != 0 else { return nil }
        return Fault(errnoValue: failure)
    }

    /// Takes the device away from under its users: their I/O fails from now on, and what is left
    /// of it goes with the last of them.
    package func cutOff() async {
        await Self.close(session, on: loop)
        await holding.release()
        // What cannot be taken away is found by the next start.
        _ = try? await BlockErrand.abandon(path, file: file).run(on: pools.waiting)
        await Self.unmount(directory, pools, closing: nil)
    }

    /// Answers what is under way and leaves the rest to the next service: its users wait. The
    /// device must be held.
    package func handOver() async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let accepted = loop.mailbox.postWhenRoom { [session] loop in
                session.get(on: loop).handOver { continuation.resume() }
            }
            precondition(accepted, "a loop does not stop while a block device is there")
        }
    }

    /// The target has grown: the device grows with it. False when it could not.
    package func updateSize() async -> Bool {
        do throws(BlockExportError) {
            let errand = BlockErrand.updateSize(path, file: file)
            return try await errand.run(on: pools.waiting).first == "taken"
        } catch { return false }
    }

    private static func close(_ session: LoopConfined<FuseSession>, on loop: LoopThread) async {
        await withCheckedContinuation { (continuation: CheckedContinuation<Void, Never>) in
            let accepted = loop.mailbox.postWhenRoom { loop in
                session.get(on: loop).close { continuation.resume() }
            }
            precondition(accepted, "a loop does not stop while a block device is there")
        }
    }

    private static func unmount(
        _ directory: String, _ pools: BlockPools, closing channel: FuseChannel?
    ) async {
        // What cannot be taken away is found by the next start.
        _ = try? await BlockErrand.unmount(directory).run(on: pools.waiting)
        if let channel { _ = await pools.closing.run { channel.close() } }
    }

    /// Runs `body` on a pool.
    private static func run<Value: Sendable>(
        _ pool: BlockingPool, _ body: @escaping @Sendable () throws(BlockExportError) -> Value
    ) async throws(BlockExportError) -> Value {
        let outcome = await pool.run { () -> Result<Value, BlockExportError> in
            do throws(BlockExportError) {
                return .success(try body())
            } catch { return .failure(error) }
        }
        guard let outcome else {
            throw BlockExportError(.busy, "too many operations wait; try again")
        }
        return try outcome.get()
    }
}
