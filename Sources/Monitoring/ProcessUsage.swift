internal import Host
internal import Glibc

/// What this process uses, as the kernel reports it; 0 for what it does not report.
package struct ProcessUsage: Sendable {
    let startedSeconds: Double
    let cpuSeconds: Double
    let residentBytes: UInt64
    let descriptorCount: UInt64
    let descriptorCountMax: UInt64

    /// Looks. Reads only /proc, which does not block.
    package static func now(startedAt startedSeconds: Double) -> ProcessUsage {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        var limit = rlimit()
        getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        return ProcessUsage(
            startedSeconds: startedSeconds,
            cpuSeconds: seconds(usage.ru_utime) + seconds(usage.ru_stime),
            residentBytes: residentBytes(), descriptorCount: openDescriptors(),
            descriptorCountMax: UInt64(limit.rlim_cur))
    }

    private static func seconds(_ time: timeval) -> Double {
        Double(time.tv_sec) + Double(time.tv_usec) / 1e6
    }

    private static func openDescriptors() -> UInt64 {
        // Not the descriptor that reads the folder.
        UInt64(max(SystemFile.names(in: "/proc/self/fd").count - 1, 0))
    }

    /// Memory of this process that is resident, in bytes; 0 when the kernel does not report it.
    package static func residentBytes() -> UInt64 {
        let fields = (SystemFile.line(of: "/proc/self/statm") ?? "").split(separator: " ")
        guard fields.count > 1, let pages = UInt64(fields[1]) else { return 0 }
        return pages * UInt64(sysconf(Int32(_SC_PAGESIZE)))
    }
}
