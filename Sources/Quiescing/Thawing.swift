package import ControlDocuments
internal import Freezing
internal import Glibc
internal import Host
internal import RingIO
internal import ServiceState

/// How long thawing is waited for: it may need the service that is gone.
private let thawSeconds: UInt64 = 10

/// Thaws what a service that is gone left frozen, and returns the mount points that were thawed:
/// what its guardian and its next start do, for the service manager and for an operator.
///
/// It keeps services from starting on that directory while it is at work, so that none is disturbed
/// in a freeze of its own. Blocks, at most for the time in which a freeze may still come back.
package func thawFilesystems(ofServiceIn runtimeDirectory: String) throws(ControlError) -> [String]
{
    var facts = stat()
    guard stat(runtimeDirectory, &facts) == 0 else {
        let reason = errno
        throw ControlError(
            reason == ENOENT ? .notFound : .failed,
            "runtime directory \(runtimeDirectory): \(errnoText(reason)); name the service's with "
                + "--runtime-dir")
    }
    let claim: LockedDirectory
    do throws(ControlError) {
        claim = try LockedDirectory(runtime: runtimeDirectory)
    } catch  where error.code == .busy {
        throw ControlError(
            .busy,
            "the service that uses \(runtimeDirectory) is running and thaws what it froze; "
                + "stop it first")
    }
    defer { withExtendedLifetime(claim) {} }
    let list = runtimeDirectory + "/" + FrozenFilesystems.listName
    guard let thawed = ErrandProcess.thaw(listedIn: list, seconds: thawSeconds) else {
        throw ControlError(
            .busy,
            "thawing has not come to its end after \(thawSeconds) s; it goes on by itself: a "
                + "filesystem on a block device of the service thaws when the service runs again")
    }
    guard access(list, F_OK) != 0 else {
        throw ControlError(
            .failed,
            "a freeze that the service began has not come back, so the filesystems in \(list) may "
                + "still become frozen; run this again later")
    }
    return thawed
}
