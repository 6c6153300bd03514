//! The driver's Kubernetes half against an API server double: real HTTP, real watches, and every fault that networks have.
#![cfg(target_os = "linux")]

mod attachments;
mod chaos;
mod double;
mod events;
mod finder;
mod golden;
mod masters;
mod reconcile;
mod watches;
