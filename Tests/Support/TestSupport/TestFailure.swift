/// Something the tests needed from outside did not work: a command, a server, a system call.
package struct TestFailure: Error, CustomStringConvertible {
    package let description: String

    package init(_ description: String) {
        self.description = description
    }
}
