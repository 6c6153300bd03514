//! The core of metanodes in one process: simulated disks, memory networks, a scripted master, paused time.

mod auth;
mod background;
mod local;
mod locks;
mod server;
mod transactions;
mod world;
