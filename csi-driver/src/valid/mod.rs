//! Text from outside, parsed into types before anything is done with it. Alphabets are allow-lists: what is not known to
//! be harmless is refused, so no later step has to think of separators, dots, encodings or look-alikes.

mod capability;
mod names;
mod options;
mod params;
mod text;

pub use capability::{AccessMode, Capability, CapacityRange};
pub(crate) use names::base32;
pub use names::{NodeName, Subdir, VolumeHandle, VolumeName};
pub use options::MountOptions;
pub use params::Parameters;
pub use text::{MAP_BYTES_MAX, NODE_BYTES_MAX, TEXT_BYTES_MAX, map_size, present, target_path, text};

#[cfg(test)]
mod corpus_tests;
