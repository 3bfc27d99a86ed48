package import NIOCore
internal import NIOSSL

/// Ends TLS in the pipelines of a server, for HTTP.
package struct TLSServer: Sendable {
    private let context: NIOSSLContext

    /// Loads the credentials.
    package init(_ credentials: TLSCredentials) throws(EncryptionError) {
        context = try credentials.context()
    }

    /// What ends TLS on one connection; the first of its pipeline.
    package func handler() -> any ChannelHandler { NIOSSLServerHandler(context: context) }
}
