//! Why a call failed: one gRPC code and one sentence. Codes decide what orchestrators do next: Aborted, Unavailable,
//! DeadlineExceeded, ResourceExhausted and Cancelled mean "work may still run, ask again", every other one "nothing was
//! left behind".

use fusefs_types::{FsError, cluster::MasterRefusal};
use tonic::{Code, Status};

/// Result of a call.
pub type Outcome<T> = Result<T, Fault>;

/// A refused or failed call. The message is never empty and never holds a secret; details are never sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code:?}: {message}")]
pub struct Fault {
    /// What the orchestrator branches on.
    pub code: Code,
    /// What people read.
    pub message: String,
}

macro_rules! constructors {
    ($($(#[$doc:meta])* $name:ident = $code:ident;)*) => {
        impl Fault {
            $($(#[$doc])* pub fn $name(message: impl Into<String>) -> Fault { Fault::new(Code::$code, message) })*
        }
    };
}

constructors! {
    /// A field is missing or wrong.
    invalid = InvalidArgument;
    /// No such volume, node or path.
    not_found = NotFound;
    /// Exists, but differs from what is asked.
    exists = AlreadyExists;
    /// The state of the volume forbids it.
    precondition = FailedPrecondition;
    /// A size or a token beyond what is possible.
    out_of_range = OutOfRange;
    /// Another call works on it, or it must be tried again.
    aborted = Aborted;
    /// The cluster or the mount does not answer now.
    unavailable = Unavailable;
    /// A limit is reached.
    exhausted = ResourceExhausted;
    /// Not offered.
    unimplemented = Unimplemented;
    /// Everything was rolled back and asking again will not help.
    internal = Internal;
}

impl Fault {
    /// A fault of any code.
    pub fn new(code: Code, message: impl Into<String>) -> Fault {
        let message = message.into();
        Fault { code, message: if message.is_empty() { code.description().to_owned() } else { message } }
    }
}

impl From<Fault> for Status {
    fn from(f: Fault) -> Status {
        Status::new(f.code, f.message)
    }
}

/// The general meaning of a master's refusal; calls with a special meaning of a code look at it first.
impl From<MasterRefusal> for Fault {
    fn from(r: MasterRefusal) -> Fault {
        let code = match r.error {
            FsError::NotFound => Code::NotFound,
            FsError::Exists => Code::AlreadyExists,
            FsError::Invalid | FsError::TooBig | FsError::NameTooLong => Code::InvalidArgument,
            FsError::InUse => Code::FailedPrecondition,
            FsError::NoSpace | FsError::Quota => Code::ResourceExhausted,
            FsError::Unauthenticated => Code::Unauthenticated,
            FsError::AccessDenied | FsError::NotPermitted => Code::PermissionDenied,
            FsError::Fenced | FsError::Stale => Code::FailedPrecondition,
            FsError::Conflict | FsError::WouldBlock => Code::Aborted,
            FsError::NotSupported | FsError::NotImplemented => Code::FailedPrecondition,
            // The outcome may be unknown: a final code would make the orchestrator forget the volume.
            _ => Code::Unavailable,
        };
        Fault::new(code, r.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_message_and_unknown_outcomes_are_not_final() {
        for &error in FsError::ALL {
            let fault = Fault::from(MasterRefusal { error, message: String::new(), leader: None });
            assert!(!fault.message.is_empty(), "{error:?}");
            assert_ne!(fault.code, Code::Ok, "{error:?}");
        }
        for error in [FsError::Unavailable, FsError::Overloaded, FsError::NotLeader, FsError::Io, FsError::TimedOut] {
            let fault = Fault::from(MasterRefusal { error, message: "x".into(), leader: None });
            assert_eq!(fault.code, Code::Unavailable, "{error:?}");
        }
    }
}
