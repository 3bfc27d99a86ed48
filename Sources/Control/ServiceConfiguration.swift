internal import BlockDeviceManagement
package import ControlDocuments
internal import ExportNBD
package import HTTPInterface
package import RingIO
package import ServiceState

/// What `serve` was asked for, checked.
package struct ServiceConfiguration: Sendable {
    /// Path of the control socket.
    package var control: String
    package var stateDirectory: String
    package var runtimeDirectory: String
    /// Where NBD is served besides the passed sockets.
    package var nbd: [ListenAddress]
    /// Sockets that the service manager opened for the service.
    package var passed: PassedSockets
    /// A path that `--control` named in vain, because a control socket was passed.
    package var unboundControl: String?
    package var attach: [AttachRequest]
    /// Nil: one per core, at most 4.
    package var loopCount: Int?
    /// Plain TCP may be offered on addresses beyond loopback.
    package var allowsPlaintext: Bool
    /// TLS on NBD's TCP ports; nil: none.
    package var encryption: EncryptionSettings?
    /// Whom the service continues as once all is open; nil: the user that started it.
    package var user: ServiceUser?
    /// Optional features of io_uring to do without, for tests.
    package var withoutRingFeatures: RingFeatures
    /// Socket of the service manager that is notified when all is reachable.
    package var notifySocket: String?
    /// Longest freeze of filesystems, for tests; nil: 10 s.
    package var freezeLimitMilliseconds: UInt64?
    /// Block devices to make at the start.
    package var blocks: [RememberedBlock] = []
    /// Seconds for which block devices wait for the next service.
    package var restartLimitSeconds = ServiceConfiguration.restartLimitDefault
    /// Where the page is served, and to whom; nil: nowhere.
    package var page: PageSettings?
    /// Where the names of block devices are, for tests another directory.
    package var blockLinkDirectory = BlockLinks.directory

    /// Seconds for which block devices wait unless something else was asked for.
    package static let restartLimitDefault: UInt64 = 300
    /// Longest time that can be asked for: a day.
    package static let restartLimitMax: UInt64 = 86400

    /// Most loops.
    package static let loopCountMax = 64

    package init(
        control: String, stateDirectory: String, runtimeDirectory: String, nbd: [ListenAddress],
        passed: PassedSockets = PassedSockets(), attach: [AttachRequest], loopCount: Int? = nil,
        allowsPlaintext: Bool = false,
        encryption: EncryptionSettings? = nil, user: ServiceUser? = nil,
        withoutRingFeatures: RingFeatures = [], notifySocket: String? = nil,
        freezeLimitMilliseconds: UInt64? = nil
    ) throws(ControlError) {
        try checkSocketPath(control)
        for path in [stateDirectory, runtimeDirectory] where !path.hasPrefix("/") {
            throw ControlError(.invalid, "directory \"\(path)\": give an absolute path")
        }
        if let loopCount, !(1...Self.loopCountMax).contains(loopCount) {
            throw ControlError(
                .invalid,
                "\(loopCount) loops: give a whole number from 1 to \(Self.loopCountMax), or leave it "
                    + "out")
        }
        let names = attach.map(\.name)
        if let twice = names.first(where: { name in names.count { $0 == name } > 1 }) {
            throw ControlError(.invalid, "device \(twice) is given twice; give each name once")
        }
        guard !nbd.contains(.unix(path: control)) else {
            throw ControlError(
                .invalid, "\(control) cannot be both control and NBD socket; name two paths")
        }
        self.control = passed.controlPath ?? control
        unboundControl = control == self.control ? nil : control
        self.stateDirectory = stateDirectory
        self.runtimeDirectory = runtimeDirectory
        // An address that was passed is served already.
        self.nbd = nbd.filter { address in !passed.nbd.contains { $0.address == address } }
        self.passed = passed
        self.attach = attach
        self.loopCount = loopCount
        self.allowsPlaintext = allowsPlaintext
        self.encryption = encryption
        self.user = user
        self.withoutRingFeatures = withoutRingFeatures
        self.notifySocket = notifySocket
        self.freezeLimitMilliseconds = freezeLimitMilliseconds
    }

    /// Why NBD is not served over TCP on other than loopback addresses; nil: it is.
    var exposureRefusal: NBDExposureRefusal? {
        if allowsPlaintext { return nil }
        guard let encryption, encryption.isRequired else { return .withoutTLS }
        return encryption.identifiesClients || encryption.allowsAnyone ? nil : .anyClient
    }

    /// Everywhere where NBD is served.
    var servedAddresses: [ListenAddress] { passed.nbd.map(\.address) + nbd }
}

extension RingFeatures {
    /// Reads a comma-separated list of names.
    package init(parsingNames text: String) throws(ControlError) {
        self = []
        for name in text.split(separator: ",") {
            guard let known = Self.names.first(where: { $0.name == name }) else {
                let names = Self.names.map(\.name).joined(separator: ", ")
                throw ControlError(
                    .invalid,
                    "\"\(name)\" is not an optional feature of io_uring; known are \(names)")
            }
            insert(known.feature)
        }
    }
}
