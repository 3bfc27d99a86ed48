/// Why a text could not be read.
package struct YAMLError: Error, Equatable {
    /// Where the problem was met, from 1.
    package let line: Int
    /// A sentence without its full stop.
    package let problem: String

    package init(line: Int, problem: String) {
        self.line = line
        self.problem = problem
    }
}
