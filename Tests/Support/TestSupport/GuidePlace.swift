import Foundation
import Glibc

/// Directories in which the commands of a guide run as they stand: only the places that they name
/// are others, so that nothing stays behind. `stillpoint serve`, which a reader runs in a terminal
/// of its own, runs in the background and has returned when the service is ready.
package final class GuidePlace {
    package let directory: TemporaryDirectory
    /// What is written differently: the text of the guide, and what stands for it here.
    package var replacements: [(text: String, replacement: String)] = []
    /// Variables of the environment of all commands.
    package var environment: [String: String] = [:]
    private let ticket: Int

    /// Makes the directories that stand for those of the machine: `srv` for `/srv/`.
    package init(_ names: [String] = ["srv", "mnt", "backup"]) throws {
        let directory = try TemporaryDirectory()
        self.directory = directory
        for name in names + ["bin", "run", "work", "dev"] {
            try FileManager.default.createDirectory(
                atPath: directory.path(name), withIntermediateDirectories: true)
        }
        replacements = names.map { ("/\($0)/", directory.path($0) + "/") }
        replacements.append(("/dev/stillpoint/", directory.path("dev") + "/"))
        let root = directory.root
        ticket = ExitCleanup.shared.register(Self.cleaning(root))
        environment = [
            "STILLPOINT_CONTROL": directory.path("run/control.sock"),
            "STILLPOINT_BLOCK_LINKS": directory.path("dev"), "HOME": root,
        ]
        try addTool("stillpoint", Self.servingTool(in: root))
    }

    deinit {
        // It is the last thing that can be done about what a test left.
        _ = try? Command.run("/bin/sh", ["-c", Self.cleaning(directory.root)], deadline: 120)
        ExitCleanup.shared.withdraw(ticket)
    }

    /// The path of `name` in it.
    package func path(_ name: String) -> String { directory.path(name) }

    /// The service that `stillpoint serve` started has logged this.
    package var log: String {
        // A log that is not there yet is empty.
        (try? String(contentsOfFile: path("log"), encoding: .utf8)) ?? ""
    }

    /// Puts a program in front of the one of the same name.
    package func addTool(_ name: String, _ text: String) throws {
        // Not written by this process: a child that another test forks at this moment would have it
        // open for writing, and it could not be run.
        try text.write(toFile: path("work/tool-\(name)"), atomically: true, encoding: .utf8)
        try Command.check(
            "install", ["-m", "0755", path("work/tool-\(name)"), path("bin/\(name)")])
    }

    /// The text of a guide with the places of here.
    package func placed(_ text: String) -> String {
        replacements.reduce(text) {
            $0.replacingOccurrences(of: $1.text, with: $1.replacement)
        }
    }

    /// Runs commands in bash, which ends at the first that fails. `wrapper` is a program with
    /// arguments that runs bash, `unshare` for example.
    package func run(
        _ script: String, wrapper: [String] = [], deadline: Double = 300
    ) throws -> Command.Outcome {
        let path = ProcessInfo.processInfo.environment["PATH"] ?? "/usr/bin:/bin"
        let words =
            wrapper + ["bash", "-c", "set -euo pipefail; cd '\(self.path("work"))'\n" + script]
        return try Command.run(
            words[0], Array(words.dropFirst()),
            environment: environment.merging(["PATH": self.path("bin") + ":" + path]) { own, _ in
                own
            },
            deadline: deadline)
    }

    /// Ends what the commands started and unmounts what they mounted.
    private static func cleaning(_ root: String) -> String {
        // Deepest mounts first. The guardian would keep block devices waiting for a next service.
        "mounts() { awk '$2 ~ \"^\(root)/\" {print $2}' /proc/mounts | sort -r; }; "
            + "for m in $(mounts | grep -v '^\(root)/run/'); do timeout 20 umount $m || umount -l $m; done; "
            // A number whose process has ended may be somebody else's by now.
            + "for f in \(root)/*.pid; do p=$(cat $f) && "
            + "tr '\\0' ' ' </proc/$p/cmdline | grep -q '\(root)/' && kill -9 $p; done; "
            + "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline | "
            + "grep -q '^[^ ]*stillpoint guardian .*\(root)/state ' && kill -9 ${p#/proc/}; done; "
            + "for d in /sys/block/loop*; do grep -q '^\(root)/run/' $d/loop/backing_file && "
            + "losetup -d /dev/${d##*/}; done; for m in $(mounts); do umount -f -l $m; done; true"
    }

    private static func servingTool(in root: String) -> String {
        """
        #!/bin/bash
        set -euo pipefail
        if [[ ${1:-} != serve ]]; then exec '\(TestService.binary)' "$@"; fi
        rm -f '\(root)/ready'
        mkfifo '\(root)/ready'
        '\(TestService.binary)' "$@" --state-dir '\(root)/state' --runtime-dir '\(root)/run' \
            >'\(root)/ready' 2>>'\(root)/log' &
        echo $! >'\(root)/service.pid'
        word=
        read -r -t 120 word <'\(root)/ready' || true
        [[ $word == ready ]] || { cat '\(root)/log' >&2; exit 1; }

        """
    }
}
