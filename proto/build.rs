//! Compiles the `.proto` files with protox: no system protoc is needed.

use std::{error::Error, path::Path};

const ROOT: &str = "proto";
const FILES: [&str; 5] = [
    "csi/v1/csi.proto",
    "fusefs/common/v1/common.proto",
    "fusefs/master/v1/master.proto",
    "fusefs/metanode/v1/metanode.proto",
    "fusefs/raft/v1/raft.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=build.rs");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", Path::new(ROOT).join(file).display());
    }
    let descriptors = protox::compile(FILES, [ROOT])?;
    // `bytes` fields share the receive buffer instead of copying into vectors.
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    Ok(())
}
