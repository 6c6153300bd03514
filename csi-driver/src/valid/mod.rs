//! Text from outside, parsed into types before anything is done with it.
