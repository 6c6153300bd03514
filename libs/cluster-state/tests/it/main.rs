//! Random histories of the cluster's state, checked after every command. A failing case prints its seed and commands
//! and is kept in `proptest-regressions/`; `PROPTEST_CASES=N` runs more.

mod history;
mod steps;
