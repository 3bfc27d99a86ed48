// swift-tools-version: 6.2
import PackageDescription

// Every target of ours is built in Swift 6 mode with warnings as errors. Exclusivity of class
// properties is enforced by the loops' thread confinement; the dynamic check would run for every
// request, so release builds leave it to the debug build and the compiler.
let strict: [SwiftSetting] = [
    .treatAllWarnings(as: .error),
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release)),
]

// What only tests run is not worth the optimiser's time, unless they compute for long.
let strictTests: [SwiftSetting] = [
    .treatAllWarnings(as: .error),
    .unsafeFlags(["-Onone"], .when(configuration: .release)),
]

// Set by `make bench` alone, which compares the program with a build of it that marks nothing.
let tracking: [SwiftSetting] =
    Context.environment["STILLPOINT_WITHOUT_TRACKING"] == nil
    ? [] : [.define("BENCHMARK_WITHOUT_TRACKING")]

// The program carries the Swift runtime, so it runs where no toolchain is. Only its link differs, so
// everything is still compiled once: the linker is told what the static FoundationEssentials needs,
// which modules that were compiled against the shared one do not say. Tests must not depend on the
// target, or they would be linked with two runtimes. A program with the address sanitizer, which
// Scripts/sanitize builds, uses the shared runtime: linked statically, the sanitizer's functions that
// manage memory are hidden from the C library.
let selfContained: [LinkerSetting] =
    Context.environment["STILLPOINT_SANITIZED"] != nil
    ? []
    : [
        .unsafeFlags(["-static-stdlib"]),
        // The static runtime asks the linker to export every symbol of the program. Nothing looks them
        // up, and each is kept although nobody calls it: 3.4 MB.
        .unsafeFlags(["-Xlinker", "--no-export-dynamic"]),
        .linkedLibrary("_FoundationCShims"),
        .linkedLibrary("_FoundationCollections"),
        .linkedLibrary("swiftSynchronization"),
    ]

let package = Package(
    name: "stillpoint",
    products: [
        .executable(name: "stillpoint", targets: ["stillpoint"])
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(
            url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1", traits: []),
        .package(url: "https://github.com/apple/swift-nio", from: "2.101.2"),
        .package(url: "https://github.com/apple/swift-nio-extras", from: "1.35.2"),
        .package(url: "https://github.com/apple/swift-nio-ssl", from: "2.37.6"),
    ],
    targets: [
        .target(
            name: "CLinux", linkerSettings: [.linkedLibrary(":libblkid.a")]),
        .target(
            name: "CRing", dependencies: ["CLinux"],
            linkerSettings: [.linkedLibrary(":liburing.a")]),
        // The archives, so that the program needs no package of theirs where it is installed.
        .systemLibrary(name: "CYAML"),
        .target(
            name: "YAMLReading", dependencies: ["CYAML"], swiftSettings: strict,
            linkerSettings: [.linkedLibrary(":libyaml.a")]),
        .target(
            name: "CLiveTracking", exclude: ["bpf"],
            cSettings: [.headerSearchPath("skeleton")]),
        .target(name: "PageFiles", exclude: ["files"]),
        .target(name: "BlockModel", swiftSettings: strict),
        .target(name: "ChangeTracking", dependencies: ["BlockModel"], swiftSettings: strict),
        .target(name: "CopyOnWrite", dependencies: ["BlockModel"], swiftSettings: strict),
        .target(name: "FreezePlanning", dependencies: ["BlockModel"], swiftSettings: strict),
        .target(name: "CutCoordination", dependencies: ["BlockModel"], swiftSettings: strict),
        .target(
            name: "EngineState", dependencies: ["BlockModel", "CopyOnWrite"],
            swiftSettings: strict),
        .target(
            name: "SnapshotCore",
            dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite", "EngineState"],
            swiftSettings: strict + tracking),
        .target(
            name: "Simulation",
            dependencies: [
                "BlockModel", "ChangeTracking", "CopyOnWrite", "CutCoordination", "EngineState",
                "SnapshotCore",
            ],
            path: "Tests/Support/Simulation",
            swiftSettings: strict),
        .executableTarget(
            name: "simulate", dependencies: ["Simulation"], path: "Tests/Programs/simulate",
            swiftSettings: strict),
        .executableTarget(
            name: "bench-tracking", dependencies: ["BlockModel", "CLinux", "ChangeTracking"],
            path: "Tests/Programs/bench-tracking",
            swiftSettings: strict),
        .target(name: "Host", dependencies: ["BlockModel", "CLinux"], swiftSettings: strict),
        .target(
            name: "RingIO", dependencies: ["BlockModel", "CLinux", "CRing", "Host"],
            swiftSettings: strict),
        .target(
            name: "LiveTracking",
            dependencies: ["BlockModel", "CLiveTracking", "ChangeTracking", "Host"],
            swiftSettings: strict),
        .target(
            name: "Freezing",
            dependencies: ["BlockModel", "CLinux", "FreezePlanning", "Host", "RingIO"],
            swiftSettings: strict),
        .target(
            name: "Origins",
            dependencies: [
                "BlockModel", "ChangeTracking", "CLinux", "FreezePlanning", "Host",
                "LiveTracking", "RingIO",
            ],
            swiftSettings: strict),
        .target(
            name: "Generations",
            dependencies: [
                "BlockModel", "CLinux", "ChangeTracking", "Host", "Origins", "RingIO",
            ],
            swiftSettings: strict),
        .target(
            name: "Storage",
            dependencies: ["BlockModel", "CLinux", "CopyOnWrite", "Host", "Origins", "RingIO"],
            swiftSettings: strict),
        .target(
            name: "OriginIO", dependencies: ["BlockModel", "CLinux", "Origins", "RingIO"],
            swiftSettings: strict),
        .target(
            name: "Devices",
            dependencies: [
                "BlockModel", "ChangeTracking", "CLinux", "CopyOnWrite", "EngineState",
                "Generations", "Host", "OriginIO", "Origins", "RingIO", "SnapshotCore", "Storage",
            ],
            swiftSettings: strict),
        .target(
            name: "DataPlane",
            dependencies: [
                "BlockModel", "ChangeTracking", "CLinux", "CopyOnWrite", "CutCoordination",
                "Devices", "FreezePlanning", "Freezing", "Generations", "Host", "LiveTracking",
                "OriginIO", "Origins", "RingIO", "SnapshotCore", "Storage",
            ],
            swiftSettings: strict),
        .target(
            name: "Guardianship",
            dependencies: [
                "BlockModel", "CLinux", "ChangeTracking", "Freezing", "Generations", "Host",
                "Origins", "RingIO",
            ],
            swiftSettings: strict),
        .target(name: "NBDWire", swiftSettings: strict),
        .target(
            name: "ExportNBD", dependencies: ["BlockModel", "CLinux", "NBDWire", "RingIO"],
            // Its tests look at the protocol's inner types, in the same build as everybody else's.
            swiftSettings: strict + [.unsafeFlags(["-enable-testing"])]),
        .target(
            name: "ExportBlock", dependencies: ["BlockModel", "CLinux", "Host", "RingIO"],
            swiftSettings: strict),
        .target(
            name: "Encryption",
            dependencies: [
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "NIOSSL", package: "swift-nio-ssl"),
            ],
            swiftSettings: strict),
        .target(
            name: "ControlDocuments",
            dependencies: ["BlockModel", "CopyOnWrite", "FreezePlanning"],
            swiftSettings: strict),
        .target(
            name: "ServiceState",
            dependencies: [
                "BlockModel", "CLinux", "ControlDocuments", "ExportNBD", "Freezing", "Generations",
                "Guardianship", "Host", "Origins", "RingIO",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "Quiescing",
            dependencies: [
                "BlockModel", "CLinux", "ControlDocuments", "DataPlane", "FreezePlanning",
                "Freezing", "Host", "Origins", "RingIO", "ServiceState",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "DeviceManagement",
            dependencies: [
                "BlockModel", "CLinux", "ChangeTracking", "ControlDocuments", "DataPlane",
                "Devices",
                "ExportNBD", "FreezePlanning", "Generations", "Host", "LiveTracking", "Origins",
                "RingIO", "ServiceState",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "SnapshotManagement",
            dependencies: [
                "BlockModel", "ControlDocuments", "CopyOnWrite", "DataPlane", "DeviceManagement",
                "Devices", "ExportNBD", "FreezePlanning", "Host", "Origins", "Quiescing", "RingIO",
                "ServiceState", "Storage",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "BlockDeviceManagement",
            dependencies: [
                "BlockModel", "CLinux", "ControlDocuments", "DeviceManagement", "ExportBlock",
                "ExportNBD", "Guardianship", "Host", "Origins", "RingIO", "ServiceState",
                "SnapshotManagement",
                .product(name: "Logging", package: "swift-log"),
            ],
            swiftSettings: strict),
        .target(
            name: "Monitoring",
            dependencies: [
                "BlockModel", "ControlDocuments", "DataPlane", "DeviceManagement", "Devices",
                "Host",
                "RingIO", "ServiceState", "SnapshotManagement",
            ],
            swiftSettings: strict),
        .target(
            name: "HTTPInterface",
            dependencies: [
                "BlockDeviceManagement", "BlockModel", "CLinux", "ControlDocuments", "DataPlane",
                "DeviceManagement", "Encryption", "ExportNBD", "Host", "Monitoring", "PageFiles",
                "RingIO", "ServiceState", "SnapshotManagement",
                .product(name: "Hummingbird", package: "hummingbird"),
                .product(name: "HummingbirdCore", package: "hummingbird"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOExtras", package: "swift-nio-extras"),
                .product(name: "NIOHTTPTypes", package: "swift-nio-extras"),
                .product(name: "NIOPosix", package: "swift-nio"),
                .product(name: "Logging", package: "swift-log"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
            ],
            swiftSettings: strict),
        .target(
            name: "Control",
            dependencies: [
                "BlockDeviceManagement", "CLinux", "ControlDocuments", "DataPlane",
                "DeviceManagement", "ExportBlock", "ExportNBD", "Freezing", "Guardianship",
                "HTTPInterface", "Host", "LiveTracking", "Monitoring", "Origins", "Quiescing",
                "RingIO", "ServiceState", "SnapshotManagement",
                .product(name: "Logging", package: "swift-log"),
                .product(name: "ServiceLifecycle", package: "swift-service-lifecycle"),
            ],
            swiftSettings: strict),
        .target(name: "NBDAccess", dependencies: ["NBDWire"], swiftSettings: strict),
        .target(
            name: "CopyPlanning", dependencies: ["BlockModel", "Host"], swiftSettings: strict),
        .target(
            name: "CopyTargets",
            dependencies: [
                "BlockModel", "CLinux", "CopyPlanning", "Host", "NBDAccess", "Origins",
            ],
            swiftSettings: strict),
        .target(
            name: "ImageCopy",
            dependencies: [
                "BlockModel", "CLinux", "CopyPlanning", "CopyTargets", "Host", "NBDAccess",
                "Origins",
            ],
            swiftSettings: strict),
        .target(
            name: "ClientSupport",
            dependencies: [
                "BlockModel", "ControlDocuments", "Host",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "NIOCore", package: "swift-nio"),
                .product(name: "NIOHTTP1", package: "swift-nio"),
                .product(name: "NIOPosix", package: "swift-nio"),
            ],
            swiftSettings: strict),
        .target(
            name: "ClientCommands",
            dependencies: [
                "BlockModel", "ClientSupport", "ControlDocuments", "CopyPlanning", "Host",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .target(
            name: "HeldSnapshots",
            dependencies: [
                "ClientSupport", "ControlDocuments", "Host", "RingIO",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .target(
            name: "WriterLimits",
            dependencies: [
                "BlockModel", "ClientSupport", "ControlDocuments", "Host",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .target(
            name: "CopyCommands",
            dependencies: [
                "BlockModel", "CLinux", "ClientCommands", "ClientSupport", "ControlDocuments",
                "CopyPlanning", "CopyTargets", "Encryption", "HeldSnapshots", "ImageCopy",
                "NBDAccess", "RingIO", "WriterLimits",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),
        .executableTarget(
            name: "stillpoint",
            dependencies: [
                "ClientCommands", "ClientSupport", "Control", "ControlDocuments", "CopyCommands",
                "CopyPlanning", "DeviceManagement", "HTTPInterface", "HeldSnapshots", "Quiescing",
                "RingIO", "ServiceState", "WriterLimits", "YAMLReading",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict, linkerSettings: selfContained),
        .executableTarget(name: "manual", swiftSettings: strict),
        .testTarget(
            name: "BlockModelTests", dependencies: ["BlockModel"], swiftSettings: strictTests),
        .testTarget(
            name: "HostTests", dependencies: ["BlockModel", "Host"], swiftSettings: strictTests),
        .testTarget(
            name: "RingIOTests", dependencies: ["BlockModel", "RingIO"], swiftSettings: strict),
        .testTarget(
            name: "DataPlaneTests",
            dependencies: [
                "BlockModel", "CLinux", "CTestSupport", "CopyOnWrite", "DataPlane", "Devices",
                "OriginIO", "Origins", "RingIO", "Storage",
            ],
            swiftSettings: strictTests),
        .target(name: "CTestSupport", path: "Tests/Support/CTestSupport"),
        .target(
            name: "TestSupport", dependencies: ["CTestSupport"], path: "Tests/Support/TestSupport",
            swiftSettings: strict),
        .executableTarget(
            name: "nbd-load", dependencies: ["TestSupport"], path: "Tests/Programs/nbd-load",
            swiftSettings: strict),
        .executableTarget(
            name: "count-work",
            dependencies: [
                "BlockModel", "ChangeTracking", "CopyOnWrite", "EngineState", "SnapshotCore",
            ],
            path: "Tests/Programs/count-work",
            swiftSettings: strict),
        .executableTarget(
            name: "powercut-fs", dependencies: ["CTestSupport"], path: "Tests/Programs/powercut-fs",
            swiftSettings: strict),
        .testTarget(
            name: "InteropTests",
            dependencies: [
                "CTestSupport", "TestSupport", "count-work", "nbd-load", "powercut-fs",
            ],
            swiftSettings: strictTests),
        .testTarget(
            name: "EncryptionTests", dependencies: ["Encryption", "TestSupport"],
            swiftSettings: strictTests),
        .testTarget(
            name: "HostileClientTests", dependencies: ["TestSupport"],
            swiftSettings: strictTests),
        .testTarget(
            name: "ExportNBDTests",
            dependencies: ["BlockModel", "ExportNBD", "NBDWire", "RingIO", "TestSupport"],
            swiftSettings: strictTests),
        .testTarget(
            name: "SnapshotTests", dependencies: ["TestSupport", "powercut-fs"],
            swiftSettings: strict),
        .testTarget(
            name: "BlockTests", dependencies: ["CTestSupport", "TestSupport", "powercut-fs"],
            swiftSettings: strict),
        .testTarget(
            name: "ImageCopyTests",
            dependencies: [
                "BlockModel", "CopyPlanning", "CopyTargets", "ImageCopy", "NBDAccess",
                "TestSupport", "WriterLimits", "nbd-load",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "ControlTests",
            dependencies: [
                "ControlDocuments", "Quiescing", "ServiceState", "TestSupport", "manual",
                "powercut-fs",
            ],
            swiftSettings: strictTests),
        .testTarget(
            name: "PageTests", dependencies: ["CTestSupport", "TestSupport", "nbd-load"],
            swiftSettings: strictTests),
        .testTarget(
            name: "GenerationTests",
            dependencies: [
                "BlockModel", "CTestSupport", "ChangeTracking", "Generations", "TestSupport",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "ChangeTrackingTests", dependencies: ["BlockModel", "ChangeTracking"],
            swiftSettings: strict),
        .testTarget(
            name: "LiveTrackingTests",
            dependencies: [
                "BlockModel", "CLiveTracking", "ChangeTracking", "LiveTracking", "TestSupport",
            ],
            swiftSettings: strictTests),
        .testTarget(
            name: "CopyOnWriteTests", dependencies: ["BlockModel", "CopyOnWrite"],
            swiftSettings: strictTests),
        .testTarget(
            name: "CutCoordinationTests", dependencies: ["BlockModel", "CutCoordination"],
            swiftSettings: strictTests),
        .testTarget(
            name: "EngineStateTests", dependencies: ["BlockModel", "CopyOnWrite", "EngineState"],
            swiftSettings: strictTests),
        .testTarget(
            name: "SnapshotCoreTests",
            dependencies: [
                "BlockModel", "ChangeTracking", "CopyOnWrite", "EngineState", "SnapshotCore",
            ],
            swiftSettings: strictTests),
        .testTarget(
            name: "FreezePlanningTests", dependencies: ["BlockModel", "FreezePlanning"],
            swiftSettings: strictTests),
        .testTarget(
            name: "GuardianshipTests", dependencies: ["BlockModel", "Guardianship"],
            swiftSettings: strictTests),
        .testTarget(
            name: "SimulationTests", dependencies: ["Simulation"], swiftSettings: strictTests),
    ]
)
