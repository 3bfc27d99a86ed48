// swift-tools-version: 6.2
import PackageDescription

// Microbenchmarks of the rooms that decide, and counts of their work. The rooms are the project's own
// sources: `package` access does not reach across packages.
let package = Package(
    name: "micro",
    dependencies: [
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.1", traits: [])
    ],
    targets: [
        .target(name: "BlockModel"),
        .target(name: "ChangeTracking", dependencies: ["BlockModel"]),
        .target(name: "CopyOnWrite", dependencies: ["BlockModel"]),
        .target(name: "EngineState", dependencies: ["BlockModel", "CopyOnWrite"]),
        .target(
            name: "SnapshotCore",
            dependencies: ["BlockModel", "ChangeTracking", "CopyOnWrite", "EngineState"]),
        .executableTarget(
            name: "Rooms",
            dependencies: [
                "BlockModel", "ChangeTracking", "CopyOnWrite", "EngineState", "SnapshotCore",
                .product(name: "Benchmark", package: "benchmark"),
            ],
            path: "Benchmarks/Rooms",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]),
    ]
)
