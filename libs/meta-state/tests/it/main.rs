//! Tests of the meta-partition. `util` drives one partition as a leader would; `model` compares it with a simple tree.

mod cluster;
mod data;
mod flock;
mod fuzz;
mod model;
mod names;
mod reads;
mod rename;
mod snapshot;
mod store;
mod util;
