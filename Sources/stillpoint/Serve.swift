import ArgumentParser
import Control
import Glibc
import Logging
import RingIO
import ServiceLifecycle

/// `serve`: the service, in the foreground.
struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run the service in the foreground.",
        discussion: """
            Logs go to standard error; "ready" is printed on standard output when all is \
            reachable. SIGTERM or SIGINT stops it: requests in flight finish, origins are flushed. \
            Attached devices are remembered in the state directory and attached again at the next \
            start.

            Examples:
              stillpoint serve --attach vm1=/srv/vm1.img
              stillpoint serve --nbd tcp:127.0.0.1:10809 --attach data=/dev/sdb1
              stillpoint serve --nbd tcp:0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem
            """)

    @Option(help: "Control socket (or STILLPOINT_CONTROL).")
    var control: String?

    @Option(help: "Directory for what must outlive the service.")
    var stateDir: String?

    @Option(help: "Directory for what lives as long as the machine runs.")
    var runtimeDir: String?

    @Option(
        help: ArgumentHelp(
            "Where to serve NBD: unix:PATH or tcp:HOST:PORT; may be repeated. Default: nbd.sock "
                + "beside the control socket.",
            valueName: "address"))
    var nbd: [String] = []

    @Option(
        help: ArgumentHelp(
            "Attach an origin, a disk image or block device, under a name; may be repeated.",
            valueName: "name=path"))
    var attach: [String] = []

    @Option(help: "Number of loop threads. Default: one per core, at most 4.")
    var loops: Int?

    @Flag(help: "Serve NBD over TCP without TLS on addresses beyond loopback too.")
    var allowPlaintext = false

    @Option(
        help: ArgumentHelp(
            "TLS on TCP: off, allow (clients may ask for it) or require (nothing without it). "
                + "Default: require with a certificate or keys, else off.",
            valueName: "mode"))
    var tls: String?

    @Option(help: ArgumentHelp("Certificate chain of the service, PEM.", valueName: "file"))
    var tlsCert: String?

    @Option(help: ArgumentHelp("Private key of the certificate, PEM.", valueName: "file"))
    var tlsKey: String?

    @Option(
        help: ArgumentHelp(
            "Authority, PEM: clients must show a certificate that it signed.", valueName: "file"))
    var tlsCa: String?

    @Option(
        help: ArgumentHelp(
            "Pre-shared keys instead of certificates: lines NAME:HEXKEY, mode 0600.",
            valueName: "file"))
    var tlsPsk: String?

    @Option(
        help: ArgumentHelp(
            "Go on as this user once all is open. What root alone may do is then not permitted.",
            valueName: "name"))
    var user: String?

    @Option(help: "Least important messages to log: trace, debug, info, notice, warning or error.")
    var logLevel: Logger.Level = .info

    mutating func run() async throws {
        let configuration = try serviceConfiguration()
        Self.prepareProcess()
        LoggingSystem.bootstrap { StreamLogHandler.standardError(label: $0) }
        var logger = Logger(label: "stillpoint")
        logger.logLevel = logLevel
        let service = StillpointService(configuration, logger: logger) {
            FileHandles.output.write("ready\n")
        }
        var quiet = logger
        quiet.logLevel = max(.warning, logLevel)
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [
                    .init(
                        service: service, successTerminationBehavior: .gracefullyShutdownGroup,
                        failureTerminationBehavior: .cancelGroup)
                ],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: quiet))
        try await group.run()
    }

    private func serviceConfiguration() throws -> ServiceConfiguration {
        let control = try Defaults.absolute(try control ?? Defaults.control())
        let directory = String(control[..<(control.lastIndex(of: "/") ?? control.startIndex)])
        let addresses = try nbd.map { try ListenAddress(parsing: $0) }
        let without = try Defaults.environment("STILLPOINT_RING_WITHOUT").map {
            try RingFeatures(parsingNames: $0)
        }
        return try ServiceConfiguration(
            control: control,
            stateDirectory: try Defaults.absolute(try stateDir ?? Defaults.stateDirectory()),
            runtimeDirectory: try runtimeDir.map { try Defaults.absolute($0) }
                ?? (directory.isEmpty ? "/" : directory),
            nbd: addresses.isEmpty ? [.unix(path: directory + "/nbd.sock")] : addresses,
            attach: try attach.map(Self.attachRequest), loopCount: loops,
            allowsPlaintext: allowPlaintext,
            encryption: try EncryptionSettings(
                checking: EncryptionSettings.Options(
                    mode: tls, certificate: tlsCert, key: tlsKey, authority: tlsCa,
                    preSharedKeys: tlsPsk)),
            user: try user.map { try ServiceUser(named: $0) },
            withoutRingFeatures: without ?? [],
            notifySocket: Defaults.environment("NOTIFY_SOCKET"))
    }

    private static func attachRequest(_ text: String) throws -> AttachRequest {
        guard let equals = text.firstIndex(of: "=") else {
            throw ControlError(.invalid, "--attach \(text): give NAME=PATH")
        }
        return try AttachRequest(
            name: String(text[..<equals]),
            path: try Defaults.absolute(String(text[text.index(after: equals)...])))
    }

    /// What holds for the whole process: files for this user alone, clients that go away are no
    /// reason to die, and as many descriptors as the system allows.
    private static func prepareProcess() {
        umask(0o077)
        signal(SIGPIPE, SIG_IGN)
        var limit = rlimit()
        if getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 {
            limit.rlim_cur = limit.rlim_max
            // Refused: the service runs with fewer, and says so when they are used up.
            setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
        }
    }
}

extension Logger.Level: @retroactive ExpressibleByArgument {}
