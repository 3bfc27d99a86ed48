internal import ControlDocuments
package import ExportNBD

extension ListenAddress {
    /// What the NBD server is given.
    package var endpoint: NBDEndpoint {
        switch self {
        case .unix(let path): .unix(path: path)
        case .tcp(let host, let port): .tcp(host: host, port: port)
        }
    }
}
