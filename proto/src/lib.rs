//! The wire: protobuf messages and gRPC services, generated at build time, and their conversions to and from
//! `fusefs-types`. Nothing here decides anything; decoding checks bounds and never panics.

/// Messages that several services share.
pub mod common {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated
    pub mod v1 {
        tonic::include_proto!("fusefs.common.v1");
    }
}

/// The master's service.
pub mod master {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated
    pub mod v1 {
        tonic::include_proto!("fusefs.master.v1");
    }
}

/// The metanodes' service and the raft-log payload.
pub mod metanode {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated
    pub mod v1 {
        tonic::include_proto!("fusefs.metanode.v1");
    }
}

/// The Container Storage Interface, version 1.12. Its requests may hold secrets: their `Debug` must not be logged.
#[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated
pub mod csi {
    tonic::include_proto!("csi.v1");
}

/// Raft traffic between nodes.
pub mod raft {
    /// Version 1.
    #[allow(missing_docs, clippy::all, rust_2018_idioms)] // generated
    pub mod v1 {
        tonic::include_proto!("fusefs.raft.v1");
    }
}

pub mod convert;
