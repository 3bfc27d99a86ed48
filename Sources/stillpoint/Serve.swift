import ArgumentParser
import ClientSupport
import Control
import ControlDocuments
import Glibc
import HTTPInterface
import Logging
import Quiescing
import RingIO
import ServiceLifecycle

/// `serve`: the service, in the foreground.
struct Serve: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Run the service in the foreground.",
        usage: "stillpoint serve [OPTIONS]",
        discussion: """
            The log goes to standard error. When everything can be reached, the service prints \
            "ready" on standard output. SIGTERM or SIGINT stops it: requests under way finish, and \
            origins are flushed. Attached devices are remembered in the state directory and attached \
            again at the next start.

            If a service manager passes sockets named control and nbd (LISTEN_FDS, as systemd does), \
            they are used instead of --control and of the default of --nbd, and are not removed.

            A configuration file is YAML; its keys are the long options without the dashes, and \
            paths in it are absolute. The command line overrides it.

            Examples:
              stillpoint serve --attach vm1=/srv/vm1.img
              stillpoint serve --nbd tcp:127.0.0.1:10809 --attach data=/dev/sdb1
              stillpoint serve --http tcp:127.0.0.1:9469
              stillpoint serve --config /etc/stillpoint.yaml --check
              stillpoint serve --nbd tcp:0.0.0.0:10809 --tls-cert cert.pem --tls-key key.pem \
            --tls-ca clients.pem
            """)

    @Option(help: "Control socket (or STILLPOINT_CONTROL).", completion: .file())
    var control: String?

    @Option(
        help: "Directory for what must survive a restart of the machine.", completion: .directory)
    var stateDir: String?

    @Option(
        help: "Directory for what is needed as long as the machine runs.", completion: .directory)
    var runtimeDir: String?

    @Option(
        help: ArgumentHelp(
            "Where to serve NBD: unix:PATH or tcp:HOST:PORT; may be repeated. Default: nbd.sock "
                + "beside the control socket.",
            valueName: "address"))
    var nbd: [String] = []

    @Option(
        help: ArgumentHelp(
            "Attach an origin (a disk image or block device) under a name; may be repeated.",
            valueName: "name=path"))
    var attach: [String] = []

    @Option(help: "Number of loop threads, 1 to 64. Default: one per core, at most 4.")
    var loops: Int?

    @Flag(help: "Serve NBD over TCP without TLS on addresses other than loopback.")
    var allowPlaintext = false

    @Option(
        help: ArgumentHelp(
            "TLS over TCP: off, allow (clients may use it) or require (clients must use it). "
                + "Default: require if a certificate or keys are given, otherwise off.",
            valueName: "mode"), completion: .list(["off", "allow", "require"]))
    var tls: String?

    @Option(
        help: ArgumentHelp("Certificate chain of the service, PEM.", valueName: "file"),
        completion: .file())
    var tlsCert: String?

    @Option(
        help: ArgumentHelp("Private key of the certificate, PEM.", valueName: "file"),
        completion: .file())
    var tlsKey: String?

    @Option(
        help: ArgumentHelp(
            "Certificate authority, PEM: clients must show a certificate that it has signed.",
            valueName: "file"),
        completion: .file())
    var tlsCa: String?

    @Option(
        help: ArgumentHelp(
            "Pre-shared keys instead of certificates: a file with lines NAME:HEXKEY, mode 0600.",
            valueName: "file"), completion: .file())
    var tlsPsk: String?

    @Flag(
        help: """
            With --tls-cert and without --tls-ca: serve clients without a certificate on addresses \
            other than loopback. Everyone who can reach them can read and write.
            """)
    var tlsAnyone = false

    @Option(
        help: ArgumentHelp(
            "Serve a page to look at, the GET requests of the API and metrics: tcp:HOST:PORT; may be "
                + "repeated. Beyond loopback it needs --tls-cert and --http-token-file.",
            valueName: "address"))
    var http: [String] = []

    @Option(
        help: ArgumentHelp(
            "The page asks for the token in the first line of this file, mode 0600.",
            valueName: "file"), completion: .file())
    var httpTokenFile: String?

    @Flag(help: "Leave paths of this machine out of what --http serves.")
    var httpHidePaths = false

    @Option(
        help: ArgumentHelp(
            "Another name by which browsers reach the page, through a proxy for example; may be "
                + "repeated.",
            valueName: "name"))
    var httpHost: [String] = []

    @Option(
        help: ArgumentHelp(
            "Continue as this user once everything is open. What only root may do is not possible then.",
            valueName: "name"))
    var user: String?

    @Option(
        help: ArgumentHelp(
            "Log messages of this level and above: trace, debug, info, notice, warning or error. "
                + "Default: info.",
            valueName: "level"))
    var logLevel: Logger.Level?

    @Option(
        help: ArgumentHelp(
            "How long block devices wait while no service runs, before their I/O fails. Default: "
                + "\(ServiceConfiguration.restartLimitDefault).",
            valueName: "seconds"))
    var restartLimit: UInt64?

    @Option(
        help: ArgumentHelp("Read a configuration file first.", valueName: "file"),
        completion: .file())
    var config: String?

    @Flag(
        help:
            "Check the configuration and everything that it names, then exit: 0 if it is good, otherwise 2."
    )
    var check = false

    mutating func run() async throws {
        // First of all: what is opened from here on must not be taken for a passed socket.
        let passed = try PassedSockets.take()
        let file = try config.map { try ConfigurationFile(reading: try Defaults.absolute($0)) }
        let logLevel =
            logLevel ?? file?.choice("log-level", Logger.Level.allCases) ?? Logger.Level.info
        let configuration = try serviceConfiguration(file, passed)
        guard !check else { return try Self.report(configuration.problems()) }
        Self.prepareProcess()
        LoggingSystem.bootstrap { PausableLogHandler(StreamLogHandler.standardError(label: $0)) }
        var logger = Logger(label: "stillpoint")
        logger.logLevel = logLevel
        let service = StillpointService(configuration, logger: logger) {
            FileHandles.output.announce("ready\n")
        }
        var serviceLogger = logger
        serviceLogger.logLevel = max(.warning, logLevel)
        let group = ServiceGroup(
            configuration: ServiceGroupConfiguration(
                services: [
                    .init(
                        service: service, successTerminationBehavior: .gracefullyShutdownGroup,
                        failureTerminationBehavior: .cancelGroup)
                ],
                gracefulShutdownSignals: [.sigterm, .sigint], logger: serviceLogger))
        try await group.run()
    }

    /// What was found, for `--check`.
    private static func report(_ problems: [String]) throws {
        guard problems.isEmpty else {
            throw ControlError(.invalid, problems.joined(separator: "\n"))
        }
        FileHandles.output.write("the configuration is good\n")
    }

    /// What the command line says, else the file, else the defaults.
    private func serviceConfiguration(
        _ file: ConfigurationFile?, _ passed: PassedSockets
    ) throws -> ServiceConfiguration {
        let fromFile = file?.path("control")
        // Where a socket was passed, the default names none that could be missed.
        let asked = try control ?? fromFile ?? passed.controlPath ?? Defaults.control()
        let control = try Defaults.absolute(asked)
        let place = passed.controlPath ?? control
        let directory = String(place[..<(place.lastIndex(of: "/") ?? place.startIndex)])
        let fileAddresses = file?.checked("nbd") { () throws(ControlError) in
            try file?.texts("nbd")?.map { text throws(ControlError) in
                try ListenAddress(parsing: text)
            }
        }
        let pageOptions = self.pageOptions(file)
        let fileState = file?.path("state-dir")
        let fileRuntime = file?.path("runtime-dir")
        let fileLoops = file?.number("loops", 1...ServiceConfiguration.loopCountMax)
        let filePlaintext = file?.flag("allow-plaintext") ?? false
        let fileDevices = file?.attachRequests("attach") ?? []
        let encryption = EncryptionSettings.Options(
            mode: tls ?? file?.text("tls"), certificate: tlsCert ?? file?.path("tls-cert"),
            key: tlsKey ?? file?.path("tls-key"), authority: tlsCa ?? file?.path("tls-ca"),
            preSharedKeys: tlsPsk ?? file?.path("tls-psk"),
            allowsAnyone: tlsAnyone || file?.flag("tls-anyone") ?? false)
        let user = user ?? file?.text("user")
        let blocks = file?.blocks("block") ?? []
        let fileLimit: UInt64? = file?.whole(
            "restart-limit", 1...Int(ServiceConfiguration.restartLimitMax))
        try file?.finish()
        let limit = try Self.restartLimit(restartLimit ?? fileLimit)
        let addresses =
            try nbd.isEmpty
            ? fileAddresses ?? [] : nbd.map { try ListenAddress(parsing: $0) }
        let devices = try attach.isEmpty ? fileDevices : attach.map(Self.attachRequest)
        let without = try Defaults.environment("STILLPOINT_RING_WITHOUT").map {
            try RingFeatures(parsingNames: $0)
        }
        var configuration = try ServiceConfiguration(
            control: control,
            stateDirectory: try Defaults.absolute(
                try stateDir ?? fileState ?? Defaults.stateDirectory()),
            runtimeDirectory: try (runtimeDir ?? fileRuntime).map { try Defaults.absolute($0) }
                ?? (directory.isEmpty ? "/" : directory),
            nbd: addresses.isEmpty && passed.nbd.isEmpty
                ? [.unix(path: directory + "/nbd.sock")] : addresses,
            passed: passed, attach: devices, loopCount: loops ?? fileLoops,
            allowsPlaintext: allowPlaintext || filePlaintext,
            encryption: try EncryptionSettings(checking: encryption),
            user: try user.map { try ServiceUser(named: $0) },
            withoutRingFeatures: without ?? [],
            notifySocket: Self.takeNotifySocket(),
            freezeLimitMilliseconds: Defaults.environment("STILLPOINT_FREEZE_MILLISECONDS")
                .flatMap { UInt64($0) })
        configuration.blocks = blocks
        configuration.page = try PageSettings(checking: try pageOptions.get())
        configuration.restartLimitSeconds = limit
        if let directory = Defaults.environment("STILLPOINT_BLOCK_LINKS") {
            configuration.blockLinkDirectory = try Defaults.absolute(directory)
        }
        return configuration
    }

    /// What the command line and the file say about the page; a fault of the file is reported with
    /// the others.
    private func pageOptions(
        _ file: ConfigurationFile?
    ) -> Result<PageSettings.Options, any Error> {
        let fileAddresses = file?.checked("http") { () throws(ControlError) in
            try file?.texts("http")?.map { text throws(ControlError) in
                try ListenAddress(parsing: text)
            }
        }
        let fileToken = file?.path("http-token-file")
        let hidesPaths = httpHidePaths || file?.flag("http-hide-paths") ?? false
        let fileHosts = file?.texts("http-host") ?? []
        return Result {
            PageSettings.Options(
                addresses: try http.isEmpty
                    ? fileAddresses ?? [] : http.map { try ListenAddress(parsing: $0) },
                tokenFile: try httpTokenFile.map { try Defaults.absolute($0) } ?? fileToken,
                hidesPaths: hidesPaths, hosts: httpHost.isEmpty ? fileHosts : httpHost)
        }
    }

    private static func restartLimit(_ seconds: UInt64?) throws -> UInt64 {
        let seconds = seconds ?? ServiceConfiguration.restartLimitDefault
        guard (1...ServiceConfiguration.restartLimitMax).contains(seconds) else {
            throw ControlError(
                .invalid,
                "--restart-limit \(seconds): use 1 to \(ServiceConfiguration.restartLimitMax) s")
        }
        return seconds
    }

    /// The service manager's socket, which is not for the programs that the service starts.
    private static func takeNotifySocket() -> String? {
        defer { unsetenv("NOTIFY_SOCKET") }
        return Defaults.environment("NOTIFY_SOCKET")
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
