import Foundation

// Writes the manual pages of a program built with ArgumentParser, one for each command, from what
// the program says about itself.
//
// usage: manual PROGRAM DIRECTORY

let arguments = CommandLine.arguments
guard arguments.count == 3 else {
    FileHandle.standardError.write(Data("usage: manual PROGRAM DIRECTORY\n".utf8))
    exit(2)
}
do {
    let program = Process()
    program.executableURL = URL(filePath: arguments[1])
    program.arguments = ["--experimental-dump-help"]
    let pipe = Pipe()
    program.standardOutput = pipe
    try program.run()
    let bytes = pipe.fileHandleForReading.readDataToEndOfFile()
    program.waitUntilExit()
    let dump = try JSONDecoder().decode(HelpDump.self, from: bytes)
    let directory = URL(filePath: arguments[2])
    try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: true)
    for page in ManualPage.pages(of: dump.command) {
        try Data(page.text.utf8).write(to: directory.appending(path: page.name + ".1"))
    }
} catch {
    FileHandle.standardError.write(Data("manual: \(error)\n".utf8))
    exit(1)
}
