import Foundation
import Glibc
import Synchronization
import TestSupport
import Testing

private let mebibyte = 1 << 20

@Suite(
    .enabled(if: TestService.isBuilt, "no stillpoint binary at \(TestService.binary)"),
    .enabled(if: Browser.isThere, "there is no browser"))
struct `The page in a browser` {
    /// Text of the row of a device, cells apart.
    private func row(_ name: String) -> String {
        "[...document.querySelectorAll('#device-table tbody tr')].find((row) => row.device === '\(name)')"
    }

    private func text(_ selector: String) -> String {
        "document.querySelector('\(selector)').innerText"
    }

    @Test func `shows what happens while it is open`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let browser = try Browser()
        let tab = try Tab(browser)
        try tab.open(harness.address)
        try tab.wait(for: "\(text("#connection")) === 'live'")
        try tab.wait(for: row("vm1"))
        #expect(tab.errors() == [])
        // A device that comes meanwhile, without waiting for the next question of the page.
        try harness.attach("vm2", byteCount: 3 * mebibyte)
        try tab.wait(for: "\(row("vm2")).innerText.includes('3 MiB')", seconds: 8)
        try tab.wait(for: "\(text("#event-list")).includes('device vm2 attached')")
        // A snapshot that fills up.
        try harness.write("vm1", blocks: Array(0..<512))
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "tonight", "--storage", "memory:8M")
        try tab.wait(for: "\(text("#snapshot-list")).includes('nothing stored yet')")
        try harness.write("vm1", blocks: Array(0..<512), seed: 2)
        try tab.wait(for: "\(text("#snapshot-list")).includes('2 MiB of 8 MiB (25 %)')")
        try tab.wait(for: "/full in .* at this rate/.test(\(text("#snapshot-list")))")
        // Rates, while something is written.
        let client = try NBDClient(.unix(path: harness.service.socketPath), export: "vm1")
        let isOver = Flag()
        let writing = Background {
            var block: UInt64 = 0
            while !isOver.isSet {
                try client.write(block % 512 * 4096, [UInt8](repeating: 7, count: 4096))
                _ = try client.read(block % 512 * 4096, 4096)
                block += 1
            }
        }
        try tab.wait(for: "/[0-9] [KMG]iB\\/s/.test(\(row("vm1")).cells[4].innerText)")
        try tab.wait(for: "\(row("vm1")).cells[5].innerText !== '–'")
        let table = "document.querySelector('#devices .scroll')"
        #expect(
            try tab.value("\(table).scrollWidth <= \(table).clientWidth") as? Bool == true,
            "the table has room for what it says")
        isOver.set()
        try writing.value()
        // A snapshot that is given up is said to be.
        try harness.write("vm1", blocks: Array(512..<4096))
        try harness.write("vm1", blocks: Array(512..<4096), seed: 3)
        try harness.done(
            "snapshot", "create", "--device", "vm1", "--name", "small", "--storage", "memory:1M")
        try harness.write("vm1", blocks: Array(512..<4096), seed: 4)
        try tab.wait(for: "\(text("#snapshot-list")).includes('(layer 1 of 2)')")
        try tab.wait(for: "\(text("#snapshot-list")).includes('corrupted')")
        try tab.wait(for: "\(text("#problems")).includes('small')")
        // Events of one kind.
        try tab.value(
            """
            (() => { const kind = document.getElementById('event-kind');
                kind.value = 'corrupted'; kind.dispatchEvent(new Event('change')); })()
            """)
        try tab.wait(for: "!\(text("#event-list")).includes('attached')")
        try tab.wait(for: "\(text("#event-list")).includes('given up')")
        try tab.picture("events")
        #expect(tab.errors() == [])
    }

    @Test func `says when a snapshot is full at the rate of now, not at that since its cut`() throws
    {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        // 1000 seconds with nothing, 100 with 1 MiB each, 100 with nothing; looked at every 10.
        let words =
            try tab.value(
                """
                (async () => {
                    const { Fills } = await import("/history.js");
                    const { Snapshots } = await import("/snapshots.js");
                    const fills = new Fills();
                    const snapshots = new Snapshots(fills);
                    const found = [];
                    const start = Date.now();
                    Date.now = () => start + seconds * 1000;
                    let seconds = 0;
                    for (const [end, rate] of [[1000, 0], [1100, 1 << 20], [1200, 0]]) {
                        const stored = fills.of("s").at(-1)?.value ?? 0;
                        const begin = seconds;
                        while (seconds < end) {
                            seconds += 10;
                            snapshots.show([{
                                id: "s", name: "s", state: "held", consistency: "crash", devices: [],
                                warnings: [], taken_at: new Date(start).toISOString(),
                                storage: {
                                    stored_bytes: stored + rate * (seconds - begin), limit: 200 << 20,
                                    estimated_seconds_to_full: 5000,
                                },
                            }], []);
                            if (seconds === 30) found.push(document.querySelector(".outlook").innerText);
                        }
                        found.push(document.querySelector(".outlook").innerText);
                    }
                    return found.join("; ");
                })()
                """) as? String
        #expect(
            words == "full in 1 h 23 min at this rate; not filling now; "
                + "full in 1 min at this rate; not filling now")
    }

    @Test func `paints what changed where it changed`() throws {
        let harness = try PageHarness()
        // A cell is 16 blocks: 128 MiB in 2048 cells.
        try harness.attach("vm1", byteCount: 128 * mebibyte)
        let first = Set(
            (0..<2048 as Range<UInt64>).filter { $0 % 97 == 0 || (300..<420).contains($0) })
        let second = Set(
            (0..<2048 as Range<UInt64>).filter { $0 % 61 == 3 || (390..<500).contains($0) })
        let third = Set(
            (0..<2048 as Range<UInt64>).filter { $0 % 41 == 5 || (480..<600).contains($0) })
        try harness.write("vm1", blocks: first.map { $0 * 16 + 3 })
        try harness.done("checkpoint", "create", "monday", "--device", "vm1")
        try harness.write("vm1", blocks: second.map { $0 * 16 })
        try harness.done("checkpoint", "create", "tuesday", "--device", "vm1")
        try harness.write("vm1", blocks: third.map { $0 * 16 + 15 })
        let tab = try Tab(try Browser(), width: 1400, height: 1100)
        try tab.open(harness.address)
        try tab.wait(for: "document.getElementById('base').value === 'tuesday'")
        let words = "\(third.count * 4) KiB of 128 MiB changed since tuesday"
        try tab.wait(for: "\(text("#picture-sentence")).startsWith('\(words)')")
        // Before the test looks at pixels, of which the browser complains.
        #expect(tab.errors() == [])
        func classes() throws -> [String] {
            let text = try tab.value(
                """
                (() => {
                    const canvas = document.getElementById('picture');
                    const style = getComputedStyle(canvas);
                    const names = ['new', 'before', 'older', 'never'];
                    const probe = document.createElement('canvas').getContext('2d');
                    const colours = names.map((name) => {
                        probe.fillStyle = style.getPropertyValue(`--cell-${name}`).trim();
                        return [1, 3, 5].map((at) => parseInt(probe.fillStyle.slice(at, at + 2), 16));
                    });
                    const context = canvas.getContext('2d');
                    const { columns, rows } = canvas.dataset;
                    const found = [];
                    for (let index = 0; index < 2048; index += 1) {
                        const x = ((index % columns) + 0.45) * canvas.width / columns;
                        const y = (Math.floor(index / columns) + 0.45) * canvas.height / rows;
                        const [red, green, blue] = context.getImageData(x, y, 1, 1).data;
                        const distance = (colour) => Math.hypot(
                            red - colour[0], green - colour[1], blue - colour[2]);
                        const nearest = colours.map(distance);
                        const alpha = context.getImageData(x, y, 1, 1).data[3];
                        found.push(`${names[nearest.indexOf(Math.min(...nearest))]} ${alpha > 120 ? 'strong' : 'pale'}`);
                    }
                    return JSON.stringify(found);
                })()
                """)
            let data = Data((text as? String ?? "").utf8)
            return try JSONDecoder().decode([String].self, from: data)
        }
        func expected(since base: String) -> [String] {
            (0..<2048).map { (cell: UInt64) -> String in
                let kind =
                    third.contains(cell)
                    ? "new"
                    : second.contains(cell) ? "before" : first.contains(cell) ? "older" : "never"
                let isMoved =
                    switch base {
                    case "tuesday": third.contains(cell)
                    case "monday": third.contains(cell) || second.contains(cell)
                    default: kind != "never"
                    }
                return "\(kind) \(isMoved || kind == "never" ? "strong" : "pale")"
            }
        }
        for base in ["tuesday", "monday", "generation"] {
            try tab.value(
                """
                (() => { const base = document.getElementById('base');
                    base.value = '\(base)'; base.dispatchEvent(new Event('change')); })()
                """)
            let name = base == "generation" ? "tracking began" : base
            try tab.wait(for: "\(text("#picture-sentence")).includes('since \(name) ')")
            let (found, wanted) = (try classes(), expected(since: base))
            let wrong = found.indices.filter { found[$0] != wanted[$0] }
            #expect(
                wrong.isEmpty,
                "\(base): \(wrong.prefix(5).map { "\($0): \(found[$0]), not \(wanted[$0])" })")
        }
        #expect(try tab.value(text("#increments")) as? String != "")
        try tab.picture("picture")
    }

    @Test func `is used with the keyboard alone`() throws {
        let harness = try PageHarness()
        for name in ["vm1", "vm2"] { try harness.attach(name) }
        try harness.write("vm2", blocks: [0, 1, 2])
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: row("vm2"))
        func focus(on condition: String) throws {
            for _ in 0..<60 {
                if try tab.value("Boolean(\(condition))") as? Bool == true { return }
                try tab.press("Tab")
            }
            throw TestFailure("the focus never came to \(condition)")
        }
        try focus(on: "document.activeElement.innerText === 'vm2'")
        #expect(
            try tab.value("getComputedStyle(document.activeElement).outlineStyle") as? String
                == "solid")
        try tab.press("Enter")
        try tab.wait(for: "\(text("#device-title")) === 'vm2'")
        try tab.wait(for: "!document.getElementById('picture').hidden")
        try focus(on: "document.activeElement.id === 'base'")
        try focus(on: "document.activeElement.id === 'picture'")
        try tab.press("ArrowRight")
        try tab.wait(for: "\(text("#picture-cell")).startsWith('0 B to 32 KiB: 12 KiB changed')")
        try tab.press("ArrowRight")
        try tab.wait(for: "\(text("#picture-cell")).startsWith('32 KiB to 64 KiB: never')")
        try tab.press("ArrowDown", "End")
        try tab.wait(for: "\(text("#picture-cell")).includes('to 64 MiB: never')")
        try tab.press("Escape")
        try tab.wait(for: "\(text("#picture-cell")) === ''")
        try focus(on: "document.activeElement.id === 'event-kind'")
        #expect(tab.errors() == [])
    }

    @Test(.enabled(if: PythonTools.areThere, "the Python packages cannot be had"))
    func `has no serious fault for anybody, on a phone and in the dark too`() throws {
        let axe = try Accessibility()
        let directory = try TemporaryDirectory()
        let token = directory.path("token")
        try "0123456789abcdef".write(toFile: token, atomically: true, encoding: .utf8)
        #expect(chmod(token, 0o600) == 0)
        let harness = try PageHarness(["--http-token-file", token])
        try Sample.fill(harness)
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: "location.pathname === '/login'")
        try axe.check(tab, "log in")
        try tab.value("document.getElementById('token').value = 'wrong'")
        try tab.value("document.forms[0].submit()")
        try tab.wait(for: "location.hash === '#wrong'")
        try tab.wait(for: "document.getElementById('wrong').checkVisibility()")
        try axe.check(tab, "wrong token")
        try tab.value("document.getElementById('token').value = '0123456789abcdef'")
        try tab.value("document.forms[0].submit()")
        try tab.wait(for: "\(text("#connection")) === 'live'")
        #expect(try tab.value("!document.getElementById('leave').hidden") as? Bool == true)
        _ = tab.errors()
        for (width, dark) in [(1280, false), (1280, true), (360, false), (360, true)] {
            try tab.prefer(dark: dark)
            try tab.resize(width: width, height: 800, isPhone: width < 400)
            try tab.wait(for: "!document.getElementById('picture').hidden")
            #expect(
                try tab.value("document.documentElement.scrollWidth") as? Int == width,
                "the page is as wide as the screen")
            try axe.check(tab, "\(width) \(dark ? "dark" : "light")")
            try tab.picture("page-\(width)-\(dark ? "dark" : "light")", isWhole: true)
        }
        #expect(tab.errors() == [])
        // A browser that is let out sees nothing any more.
        try tab.value("document.querySelector('#leave button').click()")
        try tab.wait(for: "location.pathname === '/login'")
        try tab.open(harness.address)
        try tab.wait(for: "location.pathname === '/login'")
    }

    @Test func `says when it hears nothing, and goes on when it does again`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: "\(text("#connection")) === 'live'")
        // A follower's place is no guarantee: without a stream the page asks.
        try tab.value(
            "window.EventSource = class { constructor() { setTimeout(() => this.onerror(), 0); } addEventListener() {} close() {} }"
        )
        #expect(try harness.service.stop() == .exited(0))
        try tab.wait(for: "\(text("#connection")).startsWith('not reachable since')")
        try harness.service.restart()
        try tab.wait(for: "\(text("#connection")).startsWith('stream lost, asking every 5 s')")
        try harness.attach("vm2")
        try tab.wait(for: "\(text("#event-list")).includes('device vm2 attached')")
        try tab.wait(for: row("vm2"))
    }

    @Test func `closes its connection while it is hidden, and catches up afterwards`() throws {
        let harness = try PageHarness()
        try harness.attach("vm1")
        let tab = try Tab(try Browser())
        try tab.open(harness.address)
        try tab.wait(for: "\(text("#connection")) === 'live'")
        func see(_ isSeen: Bool) throws {
            try tab.value(
                "Object.defineProperty(document, 'hidden', {value: \(!isSeen), configurable: true}); "
                    + "document.dispatchEvent(new Event('visibilitychange'))")
        }
        try tab.value(
            """
            (() => { const close = EventSource.prototype.close;
                [window.openedCount, window.closedCount] = [0, 0];
                EventSource.prototype.close = function () {
                    window.closedCount += 1;
                    close.call(this);
                };
                window.EventSource = class extends EventSource {
                    constructor(...place) {
                        super(...place);
                        window.openedCount += 1;
                    }
                }; })()
            """)
        try see(false)
        #expect(try tab.value("window.closedCount") as? Int == 1)
        #expect(try tab.value("window.openedCount") as? Int == 0)
        try harness.attach("vm2")
        try see(true)
        try tab.wait(for: "\(text("#event-list")).includes('device vm2 attached')")
        try tab.wait(for: row("vm2"))
        #expect(try tab.value(text("#connection")) as? String == "live")
        #expect(tab.errors() == [])
    }
}

/// Something that is so from some moment on.
final class Flag: Sendable {
    private let value = Atomic(false)

    var isSet: Bool { value.load(ordering: .acquiring) }

    func set() { value.store(true, ordering: .releasing) }
}

/// A service with something of everything.
enum Sample {
    static func fill(_ harness: PageHarness) throws {
        try harness.attach("database", byteCount: 256 * mebibyte)
        try harness.attach("mail", byteCount: 64 * mebibyte)
        try harness.attach("web-frontend-with-a-long-name", byteCount: 16 * mebibyte)
        try harness.write("database", blocks: (0..<2000).map { $0 * 7 % 65536 })
        try harness.done(
            "checkpoint", "create", "night-1", "--device", "database", "--device", "mail")
        try harness.write("database", blocks: (0..<1500).map { 9000 + $0 * 5 }, seed: 2)
        try harness.write("mail", blocks: Array(0..<900), seed: 3)
        try harness.done(
            "checkpoint", "create", "night-2", "--device", "database", "--device", "mail")
        try harness.write("database", blocks: (0..<800).map { 40_000 + $0 * 3 }, seed: 4)
        try harness.done(
            "snapshot", "create", "--device", "database", "--device", "mail", "--name", "night-3",
            "--storage", "memory:16M")
        try harness.write("database", blocks: (0..<700).map { 9000 + $0 * 5 }, seed: 5)
        try harness.done(
            "copy", "database@night-3", harness.service.directory.path("database.copy"))
    }
}

/// axe-core, from PyPI, run in a page.
struct Accessibility {
    private let program: String

    init() throws {
        let outcome = try PythonTools.run("axe.py")
        guard outcome.status == 0 else { throw TestFailure(outcome.diagnostics) }
        program = outcome.output
    }

    /// Expects nothing that is serious or critical.
    func check(_ tab: Tab, _ place: String) throws {
        try tab.value(program + "; true")
        // A colour on its way to another one is not what people read.
        try tab.value(
            "Promise.all(document.getAnimations().map(({finished}) => finished)).then(() => true)")
        let found =
            try tab.value(
                """
                axe.run(document, {resultTypes: ["violations"]}).then((results) => JSON.stringify(
                    results.violations.filter(({impact}) => ["serious", "critical"].includes(impact))
                        .map(({id, help, nodes}) => `${id}: ${help}: ${nodes.map(({html, failureSummary}) =>
                            `${html} ${failureSummary}`).join("; ")}`)))
                """) as? String
        #expect(found == "[]", "\(place): \(found ?? "")")
    }
}
