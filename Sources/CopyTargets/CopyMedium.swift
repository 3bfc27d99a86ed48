package import BlockModel
package import CopyPlanning

// What can hold a copy. A file and a block device are written by this program itself (CopyTarget);
// a qcow2 file through qemu-nbd, an export of an NBD server, and an RBD image through librbd.

/// Bytes that can be read at any place, by several threads at once.
package protocol CopyBytes: Sendable {
    /// How many there are.
    var size: UInt64 { get }

    /// Reads bytes that lie within them.
    func read(
        _ offset: UInt64, into place: UnsafeMutableRawPointer, _ byteCount: Int
    ) throws(CopyError)

    /// Where the next data lie in a range, up to the next bytes that are known to be zero; nil when
    /// all of it is zero.
    func data(in range: ByteRange) throws(CopyError) -> ByteRange?
}

/// What a copy is written to; see the head of this file. Everything blocks.
package protocol CopyMedium: Sendable {
    /// What the user calls it.
    var path: String { get }
    /// It was made when it was opened.
    var isNew: Bool { get }
    /// A full copy begins with one that reads as zero, whatever it held.
    var beginsFresh: Bool { get }
    /// It can be made larger.
    var canGrow: Bool { get }
    /// It keeps versions of itself, so a complete copy of another cut may be replaced in place.
    var keepsVersions: Bool { get }

    /// How it looks now.
    func file() throws(CopyError) -> CopyRecord.File

    /// What it seems to hold where no record tells, such as "an ext4 filesystem"; nil for nothing.
    func content() throws(CopyError) -> String?

    /// Whether it holds what a record says, those places aside that are in `changes`; nil when
    /// nothing can tell.
    func holds(
        _ record: CopyRecord, except changes: RangeSpool?
    ) throws(CopyError) -> Bool?

    /// What tells later whether somebody else wrote to it: samples of places in `ranges` alone
    /// where they are given, and of what was written. Nil where something better tells.
    func samples(
        within ranges: [ByteRange]?, written: RangeSpool?
    ) throws(CopyError) -> [CopyRecord.Sample]?

    /// Makes it ready for an image of `size` bytes, before the first write. `plan`: what is done.
    func prepare(_ size: UInt64, for plan: CopyPlan) throws(CopyError)

    /// Where `count` threads write to, each to its own.
    func sinks(_ count: Int) throws(CopyError) -> [any CopySink]

    /// Everything that the sinks have taken is on stable storage when this returns.
    func sync() throws(CopyError)

    /// `sync` may be called while the sinks are written to.
    var syncsWhileWriting: Bool { get }

    /// The sinks are no longer written to: any later write is another program's and is detected.
    func settle() throws(CopyError)

    /// All was written: what it holds now is the image of `cut`. Nothing is written afterwards.
    func complete(_ cut: CopyCut) throws(CopyError)

    /// Throws when what `complete` does for a cut cannot be done.
    func checkName(of cut: CopyCut) throws(CopyError)

    /// Says what the version is a copy of that `complete` has left.
    func describe(_ device: String, _ cut: CopyCut) throws(CopyError)

    /// Takes everything out of a file.
    func empty() throws(CopyError)

    /// Nothing was decided for it: what `isNew` says was made goes.
    func withdraw()
}

extension CopyMedium {
    package func checkName(of cut: CopyCut) {}
    package func describe(_ device: String, _ cut: CopyCut) {}
}
