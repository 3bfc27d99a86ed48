import CTestSupport
import Foundation
import Glibc
import TestSupport

// Debian's Chromium, driven by its own protocol over two pipes: what is asked goes into one, what
// it answers and what happens in it comes out of the other, each message JSON with a zero behind
// it.

/// A browser of one test, ended with the object. For one thread.
final class Browser {
    /// Where the browser is; nil, and a printed reason, where there is none.
    static let program: String? = {
        for name in ["chromium-headless-shell", "chromium"] where Command.exists(name) {
            return name
        }
        print("skipped: what needs a browser: install chromium-headless-shell, or chromium")
        return nil
    }()

    static var isThere: Bool { program != nil }

    private let process: ChildProcess
    private let directory: TemporaryDirectory
    private let input: Int32
    private let output: Int32
    private var pending: [UInt8] = []
    private var lastID = 0
    /// What happened and nobody has asked for.
    fileprivate private(set) var happened: [[String: Any]] = []

    private static let deadline = 120.0

    init() throws {
        guard let program = Self.program else { throw TestFailure("there is no browser") }
        directory = try TemporaryDirectory()
        var (toBrowser, fromBrowser): ([Int32], [Int32]) = ([-1, -1], [-1, -1])
        guard stillpoint_test_pipe(&toBrowser) == 0, stillpoint_test_pipe(&fromBrowser) == 0 else {
            throw TestFailure("pipe2: \(errno)")
        }
        input = toBrowser[1]
        output = fromBrowser[0]
        defer {
            close(toBrowser[0])
            close(fromBrowser[1])
        }
        process = try ChildProcess(
            program,
            [
                "--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu",
                "--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage",
                "--ignore-certificate-errors", "--hide-scrollbars",
                "--user-data-dir=\(directory.path("profile"))", "about:blank",
            ],
            environment: ["HOME": directory.path("home"), "LANG": "C.UTF-8"],
            diagnostics: directory.path("log"), passing: [toBrowser[0], fromBrowser[1]])
    }

    deinit {
        // It ends its children, too; the object kills it if it does not.
        _ = try? call("Browser.close")
        _ = try? process.wait(deadline: 20)
        close(input)
        close(output)
    }

    /// Calls a method and returns its result.
    @discardableResult
    func call(
        _ method: String, _ parameters: [String: Any] = [:], session: String? = nil
    ) throws -> [String: Any] {
        lastID += 1
        var message: [String: Any] = ["id": lastID, "method": method, "params": parameters]
        message["sessionId"] = session
        var bytes = [UInt8](try JSONSerialization.data(withJSONObject: message)) + [0]
        while !bytes.isEmpty {
            let count = write(input, bytes, bytes.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { throw TestFailure("the browser takes no input: \(errno)") }
            bytes.removeFirst(count)
        }
        let end = monotonicSeconds() + Self.deadline
        while true {
            let answer = try next(until: end)
            guard answer["id"] as? Int == lastID else {
                if answer["method"] != nil { happened.append(answer) }
                continue
            }
            if let error = answer["error"] { throw TestFailure("\(method): \(error)") }
            return answer["result"] as? [String: Any] ?? [:]
        }
    }

    /// Takes what happened since, of one method.
    func take(_ method: String, session: String) -> [[String: Any]] {
        let wanted = { (event: [String: Any]) in
            event["method"] as? String == method && event["sessionId"] as? String == session
        }
        let taken = happened.filter(wanted).compactMap { $0["params"] as? [String: Any] }
        happened.removeAll(where: wanted)
        return taken
    }

    private func next(until end: Double) throws -> [String: Any] {
        while true {
            if let zero = pending.firstIndex(of: 0) {
                let message = try JSONSerialization.jsonObject(with: Data(pending[..<zero]))
                pending.removeSubrange(...zero)
                return message as? [String: Any] ?? [:]
            }
            guard try waitReadable(output, until: end) else {
                throw TestFailure("the browser did not answer within \(Self.deadline) s")
            }
            var piece = [UInt8](repeating: 0, count: 1 << 20)
            let count = read(output, &piece, piece.count)
            if count < 0, errno == EINTR { continue }
            guard count > 0 else {
                let log = try? String(contentsOfFile: directory.path("log"), encoding: .utf8)
                throw TestFailure("the browser has ended: \(log ?? "")")
            }
            pending += piece[..<count]
        }
    }
}

/// A tab of a browser.
final class Tab {
    private let browser: Browser
    private let session: String

    /// Opens an empty tab of that size.
    init(_ browser: Browser, width: Int = 1280, height: Int = 900) throws {
        self.browser = browser
        let target = try browser.call("Target.createTarget", ["url": "about:blank"])
        let attached = try browser.call(
            "Target.attachToTarget",
            ["targetId": target["targetId"] as? String ?? "", "flatten": true])
        session = attached["sessionId"] as? String ?? ""
        for room in ["Page", "Runtime", "Log", "Network"] { try call("\(room).enable") }
        try resize(width: width, height: height)
    }

    @discardableResult
    func call(_ method: String, _ parameters: [String: Any] = [:]) throws -> [String: Any] {
        try browser.call(method, parameters, session: session)
    }

    func resize(width: Int, height: Int, isPhone: Bool = false) throws {
        try call(
            "Emulation.setDeviceMetricsOverride",
            ["width": width, "height": height, "deviceScaleFactor": 1, "mobile": isPhone])
    }

    /// Whether the system of the user is dark.
    func prefer(dark: Bool) throws {
        let scheme = ["name": "prefers-color-scheme", "value": dark ? "dark" : "light"]
        try call("Emulation.setEmulatedMedia", ["features": [scheme]])
    }

    func open(_ address: String) throws {
        let answer = try call("Page.navigate", ["url": address])
        if let error = answer["errorText"] { throw TestFailure("\(address): \(error)") }
    }

    /// The value of an expression, or of what it promises.
    @discardableResult
    func value(_ expression: String) throws -> Any? {
        let answer = try call(
            "Runtime.evaluate",
            ["expression": expression, "awaitPromise": true, "returnByValue": true])
        if let fault = answer["exceptionDetails"] { throw TestFailure("\(expression): \(fault)") }
        return (answer["result"] as? [String: Any])?["value"]
    }

    /// Waits until a condition holds, looking at it each time the page is drawn. While the page is
    /// exchanged for another one there is nothing to look at.
    func wait(for condition: String, seconds: Double = 60) throws {
        let end = monotonicSeconds() + seconds
        repeat {
            let look = """
                new Promise((resolve) => {
                    const end = performance.now() + 2000;
                    const look = () => {
                        let holds = false;
                        try { holds = Boolean(\(condition)); } catch {}
                        if (holds || performance.now() > end) resolve(holds);
                        else setTimeout(look, 20);
                    };
                    look();
                })
                """
            if (try? value(look)) as? Bool == true { return }
        } while monotonicSeconds() < end
        let text = try value("document.body.innerText") as? String ?? ""
        throw TestFailure("never: \(condition)\n\(text)")
    }

    /// Presses keys, one after the other.
    func press(_ keys: String...) throws {
        let codes = [
            "Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39,
            "ArrowDown": 40, "End": 35, "Home": 36,
        ]
        for key in keys {
            var event: [String: Any] = [
                "type": "keyDown", "key": key, "code": key,
                "windowsVirtualKeyCode": codes[key] ?? 0,
            ]
            if key == "Enter" { event["text"] = "\r" }
            try call("Input.dispatchKeyEvent", event)
            event["type"] = "keyUp"
            event["text"] = nil
            try call("Input.dispatchKeyEvent", event)
        }
    }

    /// What the page complained of since: exceptions, errors on the console, files that could not
    /// be had, violations of its policy.
    func errors() -> [String] {
        let thrown = browser.take("Runtime.exceptionThrown", session: session).map { event in
            "exception: \(event["exceptionDetails"] ?? event)"
        }
        let said = browser.take("Runtime.consoleAPICalled", session: session)
            .filter { ["error", "warning", "assert"].contains($0["type"] as? String) }
            .map { "console: \($0["args"] ?? $0)" }
        let logged = browser.take("Log.entryAdded", session: session).compactMap { event in
            event["entry"] as? [String: Any]
        }.filter { ["error", "warning"].contains($0["level"] as? String) }
            .map { "log: \($0["text"] ?? "") \($0["url"] ?? "")" }
        return thrown + said + logged
    }

    /// Keeps a picture of the page as `NAME.png` among the output of the tests.
    func picture(_ name: String, isWhole: Bool = false) throws {
        let answer = try call(
            "Page.captureScreenshot", ["format": "png", "captureBeyondViewport": isWhole])
        guard let text = answer["data"] as? String, let data = Data(base64Encoded: text) else {
            throw TestFailure("no picture")
        }
        let place = Self.pictures
        try FileManager.default.createDirectory(
            atPath: place, withIntermediateDirectories: true)
        try data.write(to: URL(filePath: "\(place)/\(name).png"))
        print("picture: \(place)/\(name).png")
    }

    private static var pictures: String {
        ProcessInfo.processInfo.environment["STILLPOINT_PICTURES"]
            ?? PythonTools.repository + "/.build/pictures"
    }
}
