package import BlockModel
internal import CLinux
internal import Glibc
package import RingIO
internal import Synchronization

// A local block device for a target: a loop device over the one file of a FUSE filesystem that is
// answered on the target's loop.
//
//   /dev/loopN ── loop driver, direct I/O ── FUSE ── session on the target's loop ── target
//
// Invariants
// - What waits for our own FUSE runs on `BlockPools.waiting`, what closes its descriptor on
//   `BlockPools.closing`; neither on a loop.
// - The loop device goes before the session where the device is detached, after it where it is
//   cut off; the mount goes last.

/// Where blocking calls of block exports run.
package struct BlockPools: Sendable {
    /// Shares the descriptors of the process.
    package let closing: BlockingPool
    /// Shares none: see `BlockingPool.init`.
    package let waiting: BlockingPool

    package init(closing: BlockingPool, waiting: BlockingPool) {
        self.closing = closing
        self.waiting = waiting
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

/// A local block device; see the head of this file.
package final class BlockExport: Sendable {
    /// `/dev/loopN`.
    package let path: String
    /// Device number, as in `st_rdev`.
    package let deviceNumber: UInt64
    private let node: LoopNode
    private let directory: String
    private let loop: LoopThread
    private let session: LoopConfined<FuseSession>
    private let pools: BlockPools

    private init(
        node: LoopNode, directory: String, loop: LoopThread, session: LoopConfined<FuseSession>,
        pools: BlockPools
    ) {
        path = node.path
        deviceNumber = node.deviceNumber
        self.node = node
        self.directory = directory
        self.loop = loop
        self.session = session
        self.pools = pools
    }

    // MARK: Open

    /// Makes a block device. `ended` is called once, when its session has ended: because it was
    /// detached or cut off, because its target closes, or because the mount was taken away.
    package static func open(
        _ request: BlockExportRequest, pools: BlockPools, ended: @escaping @Sendable () -> Void
    ) async throws(BlockExportError) -> BlockExport {
        let mount = try await mount(request, pools)
        guard let session = await serve(mount, request, pools, ended) else {
            await unmount(mount.directory, pools, closing: mount.channel)
            throw BlockExportError(
                .busy,
                "\(request.name) is being detached, or its loop has as many users as it may; try "
                    + "again, or close one")
        }
        let wish = LoopNodeRequest(
            file: mount.file, name: request.name, sectorBytes: request.sectorBytes,
            isReadOnly: request.isReadOnly, scansPartitions: request.scansPartitions)
        do throws(BlockExportError) {
            let node = try await run(pools.waiting) { () throws(BlockExportError) -> LoopNode in
                try LoopNode.configure(wish)
            }
            return BlockExport(
                node: node, directory: mount.directory, loop: request.loop, session: session,
                pools: pools)
        } catch {
            await close(session, on: request.loop)
            await unmount(mount.directory, pools, closing: nil)
            throw error
        }
    }

    private static func mount(
        _ request: BlockExportRequest, _ pools: BlockPools
    ) async throws(BlockExportError) -> FuseMount {
        let (directory, name) = (request.directory, request.name)
        return try await run(pools.closing) { () throws(BlockExportError) -> FuseMount in
            try FuseMount.mount(at: directory, fileName: name)
        }
    }

    private static func serve(
        _ mount: FuseMount, _ request: BlockExportRequest, _ pools: BlockPools,
        _ ended: @escaping @Sendable () -> Void
    ) async -> LoopConfined<FuseSession>? {
        let outcome = await request.loop.mailbox.run { loop -> LoopConfined<FuseSession>? in
            let session = FuseSession(
                channel: mount.channel, name: request.name,
                target: request.target.get(on: loop), isReadOnly: request.isReadOnly, loop: loop,
                blocking: pools.closing, ended: ended)
            return session.start() ? LoopConfined(session, on: loop) : nil
        }
        return outcome ?? nil
    }

    // MARK: Close

    /// Writes back what the kernel holds and takes the device away; refused as busy while it is in
    /// use. Returns what the write-back failed with: the device is gone all the same.
    package func detach() async throws(BlockExportError) -> Fault? {
        let node = node
        let failure = try await Self.run(pools.waiting) { () throws(BlockExportError) -> Int32 in
            try node.detach()
        }
        await Self.close(session, on: loop)
        await Self.unmount(directory, pools, closing: nil)
        return failure == 0 ? nil : Fault(errnoValue: failure)
    }

    /// Takes the device away from under its users: their I/O fails from now on, and what is left
    /// of it goes with the last of them.
    package func cutOff() async {
        await Self.close(session, on: loop)
        let path = path
        _ = await pools.waiting.run { LoopNode.abandon(path) }
        await Self.unmount(directory, pools, closing: nil)
    }

    /// The target has grown: the device grows with it. False when it could not.
    package func updateSize() async -> Bool {
        let node = node
        return await pools.waiting.run { node.updateSize() } ?? false
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
        _ = await pools.waiting.run { FuseMount.unmount(directory) }
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
