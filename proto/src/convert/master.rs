//! Conversions of `fusefs.master.v1`.
