//! The driver's services over a real socket, with the masters' real state machine behind them and no masters.

mod controller;
mod fake;
mod identity;
mod list;
mod modes;
mod parallel;
mod rig;
