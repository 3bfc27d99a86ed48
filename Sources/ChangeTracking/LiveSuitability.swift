// What may be tracked while it is in use. The facts go in, a refusal or none comes out: everything
// that the block layer's tracepoints would not tell of is refused before a program is loaded.

/// What was found out about a block device, its disk and the kernel.
package struct LiveFacts: Equatable, Sendable {
    /// Name of the disk in /sys/block.
    package var disk = ""
    /// Number of this incarnation of the disk; 0 when the kernel gives none.
    package var diskSequence: UInt64 = 0
    /// It takes requests (`/sys/block/X/mq`).
    package var hasRequests = false
    /// It belongs to the device mapper.
    package var isMapped = false
    /// It is a software RAID array (md).
    package var isArray = false
    /// `queue/zoned`; `none` for the usual disk.
    package var zoned = "none"
    /// `queue/dax` is 1: its pages can be mapped and written without a request.
    package var isDirectlyMapped = false
    /// Names of what is stacked on the disk and passes requests on unchanged: md arrays, bcache.
    package var passers: [String] = []
    /// The kernel's types are there (`/sys/kernel/btf/vmlinux`).
    package var hasKernelTypes = false
    /// Major and minor version of the kernel.
    package var kernelVersion: (Int, Int) = (0, 0)
    /// A kernel for real-time work runs handlers of tracepoints in a way that was not proven.
    package var isRealTimeKernel = false

    package init() {}

    package static func == (left: LiveFacts, right: LiveFacts) -> Bool {
        left.disk == right.disk && left.diskSequence == right.diskSequence
            && left.hasRequests == right.hasRequests && left.isMapped == right.isMapped
            && left.isArray == right.isArray && left.zoned == right.zoned
            && left.isDirectlyMapped == right.isDirectlyMapped && left.passers == right.passers
            && left.hasKernelTypes == right.hasKernelTypes
            && left.kernelVersion == right.kernelVersion
            && left.isRealTimeKernel == right.isRealTimeKernel
    }
}

/// Why a block device cannot be tracked while it is in use.
package enum LiveRefusal: Equatable, Sendable {
    case kernelTooOld(Int, Int)
    case noKernelTypes
    case realTimeKernel
    case noSequence
    case array
    case memoryDisk
    case persistentMemory
    case zoned(String)
    case directlyMapped
    case noRequests
    case passedOn(by: String)

    /// Why, and the way out, to follow the name of the device; without a full stop.
    package var sentence: String {
        switch self {
        case .kernelTooOld(let major, let minor):
            "the kernel is Linux \(major).\(minor), and its block layer can be watched from 5.17 on; "
                + "attach the device without --live, or run a newer kernel"
        case .noKernelTypes:
            "the kernel does not describe its types (/sys/kernel/btf/vmlinux is missing); use a "
                + "kernel built with CONFIG_DEBUG_INFO_BTF"
        case .realTimeKernel:
            "this is a real-time kernel, on which marks have not been proven to be complete; attach "
                + "the device without --live"
        case .noSequence:
            "the kernel gives the disk no sequence number, so it could not be told from another one; "
                + "attach the device without --live"
        case .array:
            "it is a software RAID array, which does not report all of its writes; track its members, "
                + "or a volume of LVM on it"
        case .memoryDisk:
            "it is a disk in memory, whose swapping is not seen on all kernels; attach it without "
                + "--live"
        case .persistentMemory:
            "it is persistent memory, which is written without requests; attach it without --live"
        case .zoned(let model):
            "it is a zoned disk (\(model)), which chooses places of writes by itself; attach it "
                + "without --live"
        case .directlyMapped:
            "it can be mapped and written without requests (queue/dax is 1); mount without dax and "
                + "switch it off, or attach the device without --live"
        case .noRequests:
            "its driver takes no requests, so the completion of its writes is not seen; track what "
                + "lies under it, or attach the device without --live"
        case .passedOn(let name):
            "\(name) stands on it and passes writes on in a way that hides their completion; attach "
                + "another device of the stack"
        }
    }
}

extension LiveFacts {
    /// Why the disk cannot be tracked; nil when it can.
    package var refusal: LiveRefusal? {
        guard kernelVersion >= (5, 17) else {
            return .kernelTooOld(kernelVersion.0, kernelVersion.1)
        }
        if !hasKernelTypes { return .noKernelTypes }
        if isRealTimeKernel { return .realTimeKernel }
        if isArray { return .array }
        if disk.hasPrefix("zram") || disk.hasPrefix("ram") { return .memoryDisk }
        if disk.hasPrefix("pmem") || disk.hasPrefix("btt") { return .persistentMemory }
        if zoned != "none" { return .zoned(zoned) }
        if isDirectlyMapped { return .directlyMapped }
        guard hasRequests || isMapped else { return .noRequests }
        if let passer = passers.first, !hasRequests { return .passedOn(by: passer) }
        return diskSequence == 0 ? .noSequence : nil
    }
}
