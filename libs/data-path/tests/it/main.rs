//! Tests of the data path from outside. Everything runs under paused time except the stores.

mod failures;
mod format;
mod journal;
mod model;
mod reads;
mod rig;
mod stores;
mod writes;
