//! One error type for everything that ends in an errno. Infrastructure crates wrap their own errors and map here once.

/// Result of a file-system operation.
pub type FsResult<T> = Result<T, FsError>;

macro_rules! fs_errors {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $errno:expr, $text:literal;)*) => {
        /// Why an operation failed. Small and `Copy`: code branches on it, people read [`FsError::text`].
        ///
        /// The discriminant is the wire code (`proto` sends it); it never changes its meaning.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u16)]
        pub enum FsError { $($(#[$doc])* $name = $code,)* }

        impl FsError {
            /// Every error, for tests and tables.
            pub const ALL: &'static [FsError] = &[$(FsError::$name,)*];
            /// Wire code.
            pub fn code(self) -> u16 { self as u16 }
            /// Error of a wire code; an unknown code becomes [`FsError::Io`].
            pub fn from_code(code: u16) -> FsError { match code { $($code => FsError::$name,)* _ => FsError::Io } }
            /// Linux errno that the kernel is answered. The only mapping in the project.
            pub fn errno(self) -> i32 { match self { $(FsError::$name => $errno,)* } }
            /// A sentence for people.
            pub fn text(self) -> &'static str { match self { $(FsError::$name => $text,)* } }
        }
    };
}

fs_errors! {
    /// EPERM
    NotPermitted = 1, 1, "operation not permitted";
    /// ENOENT
    NotFound = 2, 2, "no such file or directory";
    /// EIO
    Io = 5, 5, "input/output error";
    /// ENXIO: no data or hole beyond the offset
    NoSuchAddress = 6, 6, "no such device or address";
    /// E2BIG
    TooBig = 7, 7, "argument list too long";
    /// EBADF
    BadHandle = 9, 9, "bad file descriptor";
    /// EAGAIN: a try-operation would block
    WouldBlock = 11, 11, "resource temporarily unavailable";
    /// EACCES
    AccessDenied = 13, 13, "permission denied";
    /// EBUSY
    InUse = 16, 16, "device or resource busy";
    /// EEXIST
    Exists = 17, 17, "file exists";
    /// EXDEV
    CrossDevice = 18, 18, "invalid cross-device link";
    /// ENOTDIR
    NotDirectory = 20, 20, "not a directory";
    /// EISDIR
    IsDirectory = 21, 21, "is a directory";
    /// EINVAL
    Invalid = 22, 22, "invalid argument";
    /// EFBIG
    FileTooBig = 27, 27, "file too large";
    /// ENOSPC
    NoSpace = 28, 28, "no space left on volume";
    /// EROFS
    ReadOnly = 30, 30, "read-only file system";
    /// EMLINK
    TooManyLinks = 31, 31, "too many links";
    /// ERANGE: the caller's buffer is too small
    Range = 34, 34, "result too large for the buffer";
    /// ENAMETOOLONG
    NameTooLong = 36, 36, "file name too long";
    /// ENOLCK
    NoLocks = 37, 37, "no locks available";
    /// ENOSYS
    NotImplemented = 38, 38, "function not implemented";
    /// ENOTEMPTY
    NotEmpty = 39, 39, "directory not empty";
    /// ELOOP
    Loop = 40, 40, "too many levels of symbolic links";
    /// ENODATA: no such extended attribute
    NoData = 61, 61, "no such extended attribute";
    /// EOPNOTSUPP
    NotSupported = 95, 95, "operation not supported";
    /// ETIMEDOUT
    TimedOut = 110, 110, "timed out";
    /// ESTALE: fenced session, unknown inode generation
    Stale = 116, 116, "stale file handle: the session was ended by the cluster";
    /// EDQUOT
    Quota = 122, 122, "quota exceeded";
    /// EINTR
    Interrupted = 4, 4, "interrupted";

    // Codes above 1000 are between our own processes. The retry loop of meta-client consumes them; if one reaches the
    // kernel all the same, the errno beside it is what it gets.
    /// This replica does not lead; retry with the hint of the reply or another replica.
    NotLeader = 1001, 5, "this replica is not the leader";
    /// The key belongs to another partition; refresh the map and retry the same op id.
    WrongRange = 1002, 5, "the key is owned by another partition";
    /// A lock of a running transaction is in the way; retry with backoff.
    Conflict = 1003, 16, "a transaction holds the name; retry";
    /// A queue or reply table is full; retry with backoff.
    Overloaded = 1004, 11, "the server is overloaded; retry";
    /// No quorum, connection refused, timeout on the way: the outcome is unknown, retry the same op id.
    Unavailable = 1005, 5, "the server cannot be reached or has no quorum";
    /// The session is not attached to this partition yet; attach, then retry.
    NotAttached = 1006, 116, "the session is not attached to this partition";
    /// The request was made by an older incarnation or attach generation: it is fenced, never retry.
    Fenced = 1007, 116, "fenced: a newer incarnation or attachment of this session exists";
    /// No or wrong credential.
    Unauthenticated = 1008, 13, "no valid cluster token or session token";
    /// The same op id came with a different request: a bug or an attack.
    FingerprintMismatch = 1009, 5, "an operation id was reused for a different request";
    /// The binary does not know this command or record.
    UpgradeNeeded = 1010, 5, "this binary is too old for the data; upgrade it";
    /// The sender's clock is too far ahead.
    ClockSkew = 1011, 5, "clock skew above the limit; fix the clock of the sender";
    /// Another cluster's node, disk or client.
    WrongCluster = 1012, 5, "this belongs to another cluster";
    /// The message was answered and forgotten long ago (below the acknowledgement floor).
    TooOld = 1013, 5, "the message is older than the acknowledgement floor";
    /// Inline budget is used up: put the bytes into an object and commit that.
    UseObject = 1014, 5, "inline budget exhausted; use an object";
    /// A checksum did not match.
    Corrupt = 1015, 5, "data failed its checksum";
}

impl FsError {
    /// True when the same op id may be sent again and can succeed.
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            FsError::NotLeader
                | FsError::WrongRange
                | FsError::Conflict
                | FsError::Overloaded
                | FsError::Unavailable
                | FsError::NotAttached
        )
    }
}

impl std::fmt::Display for FsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text())
    }
}

impl std::error::Error for FsError {}
