// swift-tools-version: 6.2
import PackageDescription

// The rooms that read what comes from outside, instrumented; see Scripts/fuzz. Of Control only
// the files that need none of its dependencies.
let instrumented: [SwiftSetting] = [
    .unsafeFlags(["-sanitize=fuzzer,address", "-parse-as-library", "-enable-testing"])
]

let package = Package(
    name: "fuzz",
    targets: [
        .target(
            name: "CLinux",
            linkerSettings: [.linkedLibrary("uring"), .linkedLibrary("blkid")]),
        .target(name: "BlockModel", swiftSettings: instrumented),
        .target(name: "ChangeTracking", dependencies: ["BlockModel"], swiftSettings: instrumented),
        .target(name: "CopyOnWrite", swiftSettings: instrumented),
        .target(
            name: "SnapshotCore", dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite"],
            swiftSettings: instrumented),
        .target(
            name: "RingIO", dependencies: ["BlockModel", "CLinux"], swiftSettings: instrumented),
        .target(
            name: "DataPlane",
            dependencies: [
                "BlockModel", "ChangeTracking", "CLinux", "CopyOnWrite", "RingIO", "SnapshotCore",
            ],
            swiftSettings: instrumented),
        .target(
            name: "ExportNBD", dependencies: ["BlockModel", "CLinux", "RingIO"],
            swiftSettings: instrumented),
        .target(
            name: "Control",
            dependencies: [
                "BlockModel", "CLinux", "DataPlane", "ExportNBD", "RingIO", "SnapshotCore",
            ],
            sources: [
                "BlockDocuments.swift", "CheckpointDocuments.swift", "CheckpointRequest.swift",
                "ControlError.swift", "Documents.swift", "HookWish.swift", "ListenAddress.swift",
                "SnapshotDocuments.swift", "SnapshotRequest.swift", "StateDirectory.swift",
                "SystemCalls.swift", "Turns.swift",
            ],
            swiftSettings: instrumented),
        .target(
            name: "Encryption",
            sources: ["EncryptionError.swift", "PreSharedKeys.swift", "SecretFile.swift"],
            swiftSettings: instrumented),
        .executableTarget(
            name: "fuzz",
            dependencies: [
                "BlockModel", "ChangeTracking", "Control", "Encryption", "ExportNBD", "RingIO",
            ],
            swiftSettings: instrumented + [.enableExperimentalFeature("Extern")],
            linkerSettings: [.unsafeFlags(["-sanitize=fuzzer,address"])]),
    ]
)
