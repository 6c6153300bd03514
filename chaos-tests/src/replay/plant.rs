//! Corruptions that are planted on purpose between the jobs and the file system. Each must be noticed.

use std::str::FromStr;

/// What goes wrong, and the job that must notice it.
macro_rules! plants {
    ($($(#[$doc:meta])* $name:ident => $text:literal in $job:literal,)*) => {
        /// One corruption.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Plant { $($(#[$doc])* $name,)* }

        /// All of them.
        pub const PLANTS: &[Plant] = &[$(Plant::$name,)*];

        impl Plant {
            /// Name on the command line.
            pub fn name(self) -> &'static str {
                match self { $(Plant::$name => $text,)* }
            }
            /// The job that must notice it.
            pub fn job(self) -> &'static str {
                match self { $(Plant::$name => $job,)* }
            }
        }
    };
}

plants! {
    /// An append is acknowledged and not made.
    LostAppend => "lost-append" in "append",
    /// An append is made twice.
    DoubledAppend => "doubled-append" in "append",
    /// Two appends of one thread change places.
    SwappedAppends => "swapped-appends" in "append",
    /// A byte of an appended record changes.
    TornAppend => "torn-append" in "append",
    /// A create was executed, its answer lost, and it is executed again: EEXIST.
    CreateTwice => "create-twice" in "create",
    /// An unlink is executed twice: ENOENT.
    UnlinkTwice => "unlink-twice" in "create",
    /// An unlink is acknowledged and not made.
    LostUnlink => "lost-unlink" in "create",
    /// A rename is acknowledged and not made.
    LostRename => "lost-rename" in "create",
    /// A written file has no content.
    EmptyFile => "empty-file" in "create",
    /// A byte that was written changes.
    FlippedByte => "flipped-byte" in "create",
    /// A held fd is refused: EBADF.
    LostHandle => "lost-handle" in "create",
    /// A call is interrupted.
    Interrupted => "interrupted" in "create",
    /// close fails: EIO.
    FailedClose => "failed-close" in "create",
    /// A direct write fails: EIO (what a page fault in a reader's buffer looks like).
    FailedDirectWrite => "failed-direct-write" in "direct",
    /// A direct read gives an old block.
    FlippedDirectRead => "flipped-direct-read" in "direct",
    /// A write is short.
    ShortWrite => "short-write" in "direct",
    /// A directory is made twice: EEXIST.
    MkdirTwice => "mkdir-twice" in "dirs",
    /// rmdir is acknowledged and not made.
    LostRmdir => "lost-rmdir" in "dirs",
    /// A directory's rename is executed twice: ENOENT.
    RenameTwice => "rename-twice" in "dirs",
    /// A write on a held fd is acknowledged and not made.
    LostWrite => "lost-write" in "random",
    /// An old write lands again later, over newer data (a broken fence).
    LateWrite => "late-write" in "random",
    /// A shrinking truncate is acknowledged and not made.
    LostTruncate => "lost-truncate" in "truncate",
    /// Bytes that were cut off come back when the file grows again.
    RisenBytes => "risen-bytes" in "truncate",
    /// utimens is off by 1 ns.
    WrongTime => "wrong-time" in "times",
    /// A later commit changes an mtime that was set.
    OverwrittenTime => "overwritten-time" in "times",
    /// A byte of a mapping does not reach the file.
    LostPage => "lost-page" in "mapped",
    /// A listing leaves out a name.
    MissingName => "missing-name" in "listing",
    /// A listing shows a name twice.
    DoubledName => "doubled-name" in "listing",
    /// A flock is acknowledged and not taken.
    FakeFlock => "fake-flock" in "flock",
    /// An fcntl lock is acknowledged and not taken.
    FakeFcntl => "fake-fcntl" in "fcntl",
    /// A write to the lock's counter is lost.
    LostCount => "lost-count" in "flock",
    /// An open file that was unlinked is empty.
    LostOrphan => "lost-orphan" in "unlinked",
    /// A symbolic link points elsewhere.
    WrongTarget => "wrong-target" in "links",
    /// An xattr is acknowledged and not set.
    LostXattr => "lost-xattr" in "links",
    /// An xattr is acknowledged as removed and stays.
    KeptXattr => "kept-xattr" in "links",
    /// A hard link is acknowledged and not made.
    LostLink => "lost-link" in "links",
    /// A link count is one too high.
    WrongNlink => "wrong-nlink" in "links",
}

impl FromStr for Plant {
    type Err = String;
    fn from_str(s: &str) -> Result<Plant, String> {
        PLANTS.iter().copied().find(|p| p.name() == s).ok_or_else(|| format!("unknown corruption {s}"))
    }
}
