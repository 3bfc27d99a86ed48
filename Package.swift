// swift-tools-version: 6.2
import PackageDescription

// Every target of ours is built in Swift 6 mode with warnings as errors. Exclusivity of class
// properties is enforced by the loops' thread confinement; the dynamic check costs the data path
// several per cent, so release builds leave it to the debug build and the compiler.
let strict: [SwiftSetting] = [
    .treatAllWarnings(as: .error),
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release)),
]

let package = Package(
    name: "stillpoint",
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-log", from: "1.16.2"),
        .package(url: "https://github.com/swift-server/swift-service-lifecycle", from: "2.13.0"),
        .package(url: "https://github.com/hummingbird-project/hummingbird", from: "2.28.1"),
        .package(url: "https://github.com/swift-server/async-http-client", from: "1.37.0"),
        .package(url: "https://github.com/swiftlang/swift-subprocess", from: "1.0.2"),
    ],
    targets: [
        .target(name: "CLinux", linkerSettings: [.linkedLibrary("uring")]),
        .target(name: "BlockModel", swiftSettings: strict),
        .target(name: "ChangeTracking", dependencies: ["BlockModel"], swiftSettings: strict),
        .target(name: "CopyOnWrite", swiftSettings: strict),
        .target(
            name: "SnapshotCore", dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite"],
            swiftSettings: strict),
        .target(
            name: "Simulation",
            dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite", "SnapshotCore"],
            swiftSettings: strict),
        .executableTarget(name: "simulate", dependencies: ["Simulation"], swiftSettings: strict),
        .target(name: "RingIO", dependencies: ["BlockModel", "CLinux"], swiftSettings: strict),
        .target(
            name: "DataPlane", dependencies: ["BlockModel", "CLinux", "RingIO"],
            swiftSettings: strict),
        .target(
            name: "ExportNBD", dependencies: ["BlockModel", "CLinux", "RingIO"],
            swiftSettings: strict),
        .testTarget(
            name: "ChangeTrackingTests", dependencies: ["BlockModel", "ChangeTracking"],
            swiftSettings: strict),
        .testTarget(
            name: "CopyOnWriteTests", dependencies: ["BlockModel", "CopyOnWrite"], swiftSettings: strict),
        .testTarget(
            name: "SnapshotCoreTests",
            dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite", "SnapshotCore"],
            swiftSettings: strict),
        .testTarget(
            name: "SimulationTests", dependencies: ["Simulation"], swiftSettings: strict),
    ]
)
