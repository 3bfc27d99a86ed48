// swift-tools-version: 6.2
import PackageDescription

// The rooms that read what comes from outside, instrumented; see Scripts/fuzz. Of ServiceState only
// the files that need none of its dependencies.
let instrumented: [SwiftSetting] = [
    .unsafeFlags(["-sanitize=fuzzer,address", "-parse-as-library", "-enable-testing"])
]

let package = Package(
    name: "fuzz",
    targets: [
        .target(
            name: "CLinux", linkerSettings: [.linkedLibrary(":libblkid.a")]),
        .target(
            name: "CRing", dependencies: ["CLinux"],
            linkerSettings: [.linkedLibrary(":liburing.a")]),
        .systemLibrary(name: "CYAML"),
        .target(
            name: "YAMLReading", dependencies: ["CYAML"], swiftSettings: instrumented,
            linkerSettings: [.linkedLibrary(":libyaml.a")]),
        .target(name: "BlockModel", swiftSettings: instrumented),
        .target(name: "ChangeTracking", dependencies: ["BlockModel"], swiftSettings: instrumented),
        .target(name: "CopyOnWrite", dependencies: ["BlockModel"], swiftSettings: instrumented),
        .target(name: "FreezePlanning", dependencies: ["BlockModel"], swiftSettings: instrumented),
        .target(name: "Host", dependencies: ["BlockModel", "CLinux"], swiftSettings: instrumented),
        .target(
            name: "RingIO", dependencies: ["BlockModel", "CLinux", "CRing", "Host"],
            swiftSettings: instrumented),
        .target(
            name: "CLiveTracking", exclude: ["bpf"],
            cSettings: [.headerSearchPath("skeleton")]),
        .target(
            name: "LiveTracking",
            dependencies: ["BlockModel", "CLiveTracking", "ChangeTracking", "Host"],
            swiftSettings: instrumented),
        .target(
            name: "Freezing",
            dependencies: ["BlockModel", "CLinux", "FreezePlanning", "Host", "RingIO"],
            swiftSettings: instrumented),
        .target(
            name: "Origins",
            dependencies: [
                "BlockModel", "ChangeTracking", "CLinux", "FreezePlanning", "Host",
                "LiveTracking", "RingIO",
            ],
            swiftSettings: instrumented),
        .target(name: "NBDWire", swiftSettings: instrumented),
        .target(
            name: "ExportNBD", dependencies: ["BlockModel", "CLinux", "NBDWire", "RingIO"],
            swiftSettings: instrumented),
        .target(
            name: "ControlDocuments",
            dependencies: ["BlockModel", "CopyOnWrite", "FreezePlanning"],
            swiftSettings: instrumented),
        .target(
            name: "ServiceState",
            dependencies: [
                "BlockModel", "ControlDocuments", "ExportNBD", "Host", "Origins", "RingIO",
            ],
            sources: [
                "AsyncReadWriteLock.swift", "CheckpointStore.swift", "LockedDirectory.swift",
                "ObjectNames.swift", "StateDirectory.swift",
            ],
            swiftSettings: instrumented),
        .target(
            name: "Encryption",
            sources: ["EncryptionError.swift", "PreSharedKeys.swift", "SecretFile.swift"],
            swiftSettings: instrumented),
        .target(name: "NBDAccess", dependencies: ["NBDWire"], swiftSettings: instrumented),
        .target(
            name: "CopyPlanning", dependencies: ["BlockModel", "Host"],
            swiftSettings: instrumented),
        .target(
            name: "CopyTargets",
            dependencies: [
                "BlockModel", "CLinux", "CopyPlanning", "Host", "NBDAccess", "Origins",
            ],
            swiftSettings: instrumented),
        .target(
            name: "ImageCopy",
            dependencies: [
                "BlockModel", "CLinux", "CopyPlanning", "CopyTargets", "Host", "NBDAccess",
                "Origins",
            ],
            swiftSettings: instrumented),
        // With the configuration file's reader, which the program alone has otherwise.
        .executableTarget(
            name: "fuzz",
            dependencies: [
                "BlockModel", "ChangeTracking", "ControlDocuments", "CopyPlanning", "CopyTargets",
                "Encryption", "ExportNBD", "FreezePlanning", "Freezing", "ImageCopy", "NBDAccess",
                "NBDWire", "RingIO", "ServiceState", "YAMLReading",
            ],
            swiftSettings: instrumented + [.enableExperimentalFeature("Extern")],
            linkerSettings: [.unsafeFlags(["-sanitize=fuzzer,address"])]),
    ]
)
