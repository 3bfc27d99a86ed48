// powercut-fs MOUNTPOINT SIZE: a file system with one file, `disk`, that loses what was not synced
// when the power is cut. For the tests; needs root. Prints `mounted`, then obeys lines of its
// standard input, with one line of answer each, until that ends:
//
//   cut all | cut SEED    drop everything unsynced, or a random part; all requests fail until `on`
//   on                    the power is back
//   fail OP N ERRNO [all] the N-th read, write or fsync from now fails, or all from it on
//   delay OP MILLISECONDS every read, write or fsync takes at least this long
//   clear                 no more failures and delays
//   counts                how many operations have been served

import CTestSupport
import Glibc

/// Says why and ends.
func giveUp(_ reason: String, status: Int32 = 1) -> Never {
    let bytes = Array("powercut-fs: \(reason)\n".utf8)
    _ = write(2, bytes, bytes.count)
    exit(status)
}

guard CommandLine.arguments.count == 3, let byteCount = Int(CommandLine.arguments[2]) else {
    giveUp("usage: powercut-fs MOUNTPOINT SIZE", status: 2)
}
let mountPoint = CommandLine.arguments[1]
let connection = open("/dev/fuse", O_RDWR | O_CLOEXEC)
guard connection >= 0 else {
    giveUp("cannot open /dev/fuse: \(String(cString: strerror(errno)))")
}
let options = "fd=\(connection),rootmode=40000,user_id=0,group_id=0,allow_other,max_read=1048576"
guard mount("powercut", mountPoint, "fuse", UInt(MS_NOSUID | MS_NODEV), options) == 0 else {
    giveUp("cannot mount: \(String(cString: strerror(errno)))")
}
print("mounted")
fflush(nil)
var fileSystem = FileSystem(connection: connection, byteCount: byteCount)
fileSystem.run()
umount2(mountPoint, 2)
