internal import Host
internal import BlockModel
internal import CLiveTracking
internal import Glibc

// The programs on the tracepoints, and their pins: with these they continue while no service runs.
//
// Invariants
// - Pinned programs are taken over only when each is there, with its link and the maps; else all
//   pins are removed and everything is reloaded.
// - Programs on bios are attached while a mapped device is tracked, all of them or none: each costs
//   every write of the machine some 0.1 us.

/// Programs that are loaded, attached and pinned.
final class LivePrograms: @unchecked Sendable {
    // SAFETY: descriptors and a mapping that do not change; the variables are changed under the
    // tracker's lock.
    private let devices: Int32
    private let slotsMap: Int32
    private let inFlight: Int32
    private let variablesMap: Int32
    private let programs: [Int32]
    private let links: [Int32]
    /// Of the programs on bios; empty while they are not attached.
    private var bioLinks: [Int32]
    private let variables: UnsafeMutablePointer<clt_variables>
    private let directory: String
    /// Where the programs find the bitmaps of disks.
    let slots: LiveSlots

    private init?(
        devices: Int32, slots slotsMap: Int32, inFlight: Int32, variables map: Int32,
        programs: [Int32], links: [Int32], bioLinks: [Int32], directory: String
    ) {
        let memory = mmap(nil, Self.variablesByteCount, PROT_READ | PROT_WRITE, MAP_SHARED, map, 0)
        guard let memory, memory != MAP_FAILED else { return nil }
        // SAFETY: the map has one value of this type, which the mapping covers.
        variables = memory.bindMemory(to: clt_variables.self, capacity: 1)
        guard let slots = LiveSlots(devices: devices, slots: slotsMap, variables: variables)
        else {
            munmap(memory, Self.variablesByteCount)
            return nil
        }
        self.slots = slots
        self.devices = devices
        self.slotsMap = slotsMap
        self.inFlight = inFlight
        variablesMap = map
        self.programs = programs
        self.links = links
        self.bioLinks = bioLinks
        self.directory = directory
    }

    deinit {
        munmap(variables, Self.variablesByteCount)
        let maps = [devices, slotsMap, inFlight, variablesMap]
        for descriptor in maps + programs + links + bioLinks { close(descriptor) }
    }

    private static let variablesByteCount = 4096
    private static let count = Int32(CLT_PROGRAM_COUNT)
    private static let requestIndexes = 0..<Int32(CLT_PROGRAM_BIO_QUEUE)
    private static let bioIndexes = Int32(CLT_PROGRAM_BIO_QUEUE)..<count
    private static func program(_ index: Int32) -> String {
        "program-" + String(cString: clt_program_name(index))
    }
    private static func link(_ index: Int32) -> String {
        "link-" + String(cString: clt_program_name(index))
    }

    // MARK: Load

    /// Opens what is pinned in a directory; nil when it is not whole.
    static func pinned(in directory: String) -> LivePrograms? {
        var opened: [Int32] = []
        func open(_ name: String) -> Int32? {
            let descriptor = clt_open_pinned("\(directory)/\(name)")
            guard descriptor >= 0 else { return nil }
            opened.append(descriptor)
            return descriptor
        }
        func find() -> LivePrograms? {
            guard let devices = open("devices"), let slots = open("slots"),
                let inFlight = open("in_flight"), let variables = open("variables")
            else { return nil }
            var programs: [Int32] = []
            for index in 0..<count {
                guard let program = open(program(index)) else { return nil }
                programs.append(program)
            }
            func links(_ indexes: Range<Int32>) -> [Int32]? {
                var links: [Int32] = []
                for index in indexes {
                    guard let link = open(link(index)) else { return nil }
                    var (misses, id, linked) = (UInt64(0), UInt32(0), UInt32(0))
                    guard clt_program_misses(programs[Int(index)], &misses, &id) == 0,
                        clt_link_program(link, &linked) == 0, linked == id
                    else { return nil }
                    links.append(link)
                }
                return links
            }
            guard let requestLinks = links(requestIndexes) else { return nil }
            let hasBioLinks = bioIndexes.contains { access("\(directory)/\(link($0))", F_OK) == 0 }
            guard let bioLinks = hasBioLinks ? links(bioIndexes) : [] else { return nil }
            return LivePrograms(
                devices: devices, slots: slots, inFlight: inFlight, variables: variables,
                programs: programs, links: requestLinks, bioLinks: bioLinks, directory: directory)
        }
        if let found = find() {
            // Those of another version agree with nothing here. They close what was opened.
            return found.variables.pointee.version == UInt64(CLT_VERSION) ? found : nil
        }
        for descriptor in opened { close(descriptor) }
        return nil
    }

    /// Loads the programs, attaches and pins them.
    static func load(into directory: String) throws(LiveError) -> LivePrograms {
        var loaded = clt_loaded()
        let failure = clt_load(&loaded)
        guard failure == 0 else { throw refusal(of: -failure) }
        // SAFETY: `programs` is an array of C integers, which Swift shows as a tuple.
        let programs = withUnsafeBytes(of: loaded.programs) { Array($0.bindMemory(to: Int32.self)) }
        let maps = [loaded.devices, loaded.slots, loaded.in_flight, loaded.variables]
        let links: [Int32]
        do throws(LiveError) {
            links = try attach(programs[..<Int(CLT_PROGRAM_BIO_QUEUE)])
        } catch {
            for descriptor in programs { close(descriptor) }
            for map in maps { close(map) }
            throw error
        }
        guard
            let made = LivePrograms(
                devices: loaded.devices, slots: loaded.slots, inFlight: loaded.in_flight,
                variables: loaded.variables, programs: programs, links: links, bioLinks: [],
                directory: directory)
        else {
            let reason = errno
            for descriptor in programs + links { close(descriptor) }
            for map in maps { close(map) }
            throw LiveError(
                .failed, "variables of programs cannot be mapped (\(SystemFile.errorText(reason)))")
        }
        made.variables.pointee.version = UInt64(CLT_VERSION)
        try made.pin()
        return made
    }

    /// Attaches programs to their tracepoints: the descriptors of the links, in the same order.
    private static func attach(_ programs: ArraySlice<Int32>) throws(LiveError) -> [Int32] {
        var links: [Int32] = []
        for program in programs {
            let link = clt_attach(program)
            guard link >= 0 else {
                for descriptor in links { close(descriptor) }
                throw LiveError(
                    .failed,
                    "the programs that mark writes cannot be attached to the kernel's tracepoints "
                        + "(\(SystemFile.errorText(-link)))")
            }
            links.append(link)
        }
        return links
    }

    private func pin() throws(LiveError) {
        var pins: [(Int32, String)] = [
            (devices, "devices"), (slotsMap, "slots"), (inFlight, "in_flight"),
            (variablesMap, "variables"),
        ]
        for index in 0..<Self.count { pins.append((programs[Int(index)], Self.program(index))) }
        for index in Self.requestIndexes { pins.append((links[Int(index)], Self.link(index))) }
        do throws(LiveError) { try pin(pins) } catch {
            Self.removePins(in: directory)
            throw error
        }
    }

    private func pin(_ pins: [(Int32, String)]) throws(LiveError) {
        for (descriptor, name) in pins {
            let failure = clt_pin(descriptor, "\(directory)/\(name)")
            guard failure == 0 else {
                throw LiveError(
                    .failed,
                    "\(directory)/\(name) cannot be pinned (\(SystemFile.errorText(-failure)))")
            }
        }
    }

    // MARK: Bios

    /// Attaches the programs that mapped devices need, unless they are attached.
    func attachBios() throws(LiveError) {
        guard bioLinks.isEmpty else { return }
        bioLinks = try Self.attach(programs[Int(CLT_PROGRAM_BIO_QUEUE)...])
        do throws(LiveError) {
            try pin(zip(bioLinks, Self.bioIndexes).map { ($0, Self.link($1)) })
        } catch {
            detachBios()
            throw error
        }
    }

    /// Detaches them, when no mapped device is tracked any more.
    func detachBios() {
        for index in Self.bioIndexes { unlink("\(directory)/\(Self.link(index))") }
        for descriptor in bioLinks { close(descriptor) }
        bioLinks = []
    }

    static func refusal(of failure: Int32) -> LiveError {
        let text = SystemFile.errorText(failure)
        switch failure {
        case EPERM, EACCES:
            return LiveError(
                .failed,
                "the kernel does not let the service load BPF programs (\(text)); it needs CAP_BPF "
                    + "and CAP_PERFMON, and a filter of system calls must allow bpf()")
        default:
            return LiveError(
                .failed,
                "the programs that mark writes cannot be loaded (\(text)); live devices need Linux "
                    + "5.17 with BTF")
        }
    }

    /// Removes everything pinned in a directory. What no process has open ends with it.
    static func removePins(in directory: String) {
        for name in SystemFile.names(in: directory) where !name.contains(".") {
            unlink("\(directory)/\(name)")
        }
    }

    // MARK: Disks

    /// Whether a disk's marks still go into this bitmap.
    func marks(_ bitmap: LiveBitmap) -> Bool {
        var own: UInt32 = 0
        guard clt_map_id(bitmap.descriptor, &own) == 0, !bitmap.isMapped || !bioLinks.isEmpty
        else { return false }
        return slots.bitmapID(ofDisk: bitmap.sequence) == own
    }

    // MARK: Skipped runs

    /// Skipped runs that no other instance stood in for: of requests, and of bios, which matter for
    /// mapped devices alone.
    struct Misses: Equatable {
        var requests: UInt64
        var bios: UInt64
    }

    /// Since the programs were loaded.
    var misses: Misses {
        func count(_ index: Int) -> UInt64 {
            var (count, id) = (UInt64(0), UInt32(0))
            // A program that cannot be asked may have missed anything.
            guard clt_program_misses(programs[index], &count, &id) == 0 else { return .max >> 8 }
            return count
        }
        func least(_ instances: [Int]) -> UInt64 { instances.map(count).min() ?? 0 }
        return Misses(
            requests: least([
                CLT_PROGRAM_REQUEST_COMPLETE_A, CLT_PROGRAM_REQUEST_COMPLETE_B,
                CLT_PROGRAM_REQUEST_COMPLETE_C,
            ]),
            bios: count(CLT_PROGRAM_BIO_QUEUE)
                + least([
                    CLT_PROGRAM_BIO_COMPLETE_A, CLT_PROGRAM_BIO_COMPLETE_B,
                    CLT_PROGRAM_BIO_COMPLETE_C,
                ]))
    }

    /// Those that generations were informed of.
    var knownMisses: Misses {
        get {
            Misses(
                requests: variables.pointee.known_request_misses,
                bios: variables.pointee.known_bio_misses)
        }
        set {
            variables.pointee.known_request_misses = newValue.requests
            variables.pointee.known_bio_misses = newValue.bios
        }
    }

    /// Measured times of all programs together: nanoseconds and runs, by program.
    var times: [(name: String, nanoseconds: UInt64, runs: UInt64)] {
        (0..<Self.count).map { index in
            var (nanoseconds, runs) = (UInt64(0), UInt64(0))
            // Refused: zero runs say so.
            _ = clt_program_times(programs[Int(index)], &nanoseconds, &runs)
            return (String(cString: clt_program_name(index)), nanoseconds, runs)
        }
    }
}
