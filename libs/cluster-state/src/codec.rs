//! Hand-packed little-endian records (docs/design/0003-master-records.md). Fields are written in order without tags; the
//! version byte in front of a command or snapshot says which order that is. Decoding random bytes answers
//! [`Malformed`], never panics, and never allocates more than the input's length justifies.

use bytes::Bytes;
use fusefs_types::{
    ClusterId, FsError, Incarnation, Ino, KeyRange, MountId, NodeId, PartitionId, RangeKey, ReplicaId, SessionId,
    StoreId, Token, VolumeId,
    cluster::{
        AccessMode, NodeRecord, ProbeCheck, Publication, PublishSpec, StoreKind, StoreRecord, VolumeSpec, VolumeState,
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// The bytes are not what a correct writer of this version writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A value with a packed form.
pub trait Pack: Sized {
    /// Appends the packed form.
    fn put(&self, out: &mut Vec<u8>);
    /// Reads it back, advancing `from`.
    fn take(from: &mut &[u8]) -> Result<Self, Malformed>;
}

/// Packs one value.
pub fn pack<T: Pack>(value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    value.put(&mut out);
    out
}

/// Unpacks one value that fills `bytes` completely.
pub fn unpack<T: Pack>(mut bytes: &[u8]) -> Result<T, Malformed> {
    let value = T::take(&mut bytes)?;
    if bytes.is_empty() { Ok(value) } else { Err(Malformed) }
}

fn split<'a>(from: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (head, rest) = from.split_at_checked(n).ok_or(Malformed)?;
    *from = rest;
    Ok(head)
}

macro_rules! pack_int {
    ($($t:ty),*) => {$(
        impl Pack for $t {
            fn put(&self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
                let bytes = split(from, std::mem::size_of::<$t>())?;
                bytes.try_into().map(<$t>::from_le_bytes).map_err(|_| Malformed)
            }
        }
    )*};
}
pack_int!(u8, u16, u32, u64, u128);

macro_rules! pack_newtype {
    ($($t:ident),*) => {$(
        impl Pack for $t {
            fn put(&self, out: &mut Vec<u8>) {
                self.0.put(out);
            }
            fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
                Ok($t(Pack::take(from)?))
            }
        }
    )*};
}
pack_newtype!(ClusterId, NodeId, SessionId, MountId, VolumeId, PartitionId, ReplicaId, StoreId, Ino, Incarnation);

impl Pack for bool {
    fn put(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::take(from)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

impl<const N: usize> Pack for [u8; N] {
    fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(self);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        split(from, N)?.try_into().map_err(|_| Malformed)
    }
}

fn put_len(n: usize, out: &mut Vec<u8>) {
    // Every list and text is bounded far below 2^32 before it becomes part of a command.
    u32::try_from(n).unwrap_or(u32::MAX).put(out);
}

fn take_len(from: &mut &[u8]) -> Result<usize, Malformed> {
    let n = u32::take(from)? as usize;
    // Every element takes at least one byte, so a longer list is a lie.
    if n > from.len() { Err(Malformed) } else { Ok(n) }
}

impl Pack for String {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self.as_bytes());
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let n = take_len(from)?;
        std::str::from_utf8(split(from, n)?).map(str::to_owned).map_err(|_| Malformed)
    }
}

impl Pack for Bytes {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        out.extend_from_slice(self);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let n = take_len(from)?;
        Ok(Bytes::copy_from_slice(split(from, n)?))
    }
}

impl<T: Pack> Pack for Option<T> {
    fn put(&self, out: &mut Vec<u8>) {
        self.is_some().put(out);
        if let Some(value) = self {
            value.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::take(from)? { Some(T::take(from)?) } else { None })
    }
}

impl<T: Pack> Pack for Vec<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        self.iter().for_each(|v| v.put(out));
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let n = take_len(from)?;
        (0..n).map(|_| T::take(from)).collect()
    }
}

impl<T: Pack + Ord> Pack for BTreeSet<T> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        self.iter().for_each(|v| v.put(out));
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let n = take_len(from)?;
        (0..n).map(|_| T::take(from)).collect()
    }
}

impl<K: Pack + Ord, V: Pack> Pack for BTreeMap<K, V> {
    fn put(&self, out: &mut Vec<u8>) {
        put_len(self.len(), out);
        for (k, v) in self {
            k.put(out);
            v.put(out);
        }
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        let n = take_len(from)?;
        (0..n).map(|_| Ok((K::take(from)?, V::take(from)?))).collect()
    }
}

impl<A: Pack, B: Pack> Pack for (A, B) {
    fn put(&self, out: &mut Vec<u8>) {
        self.0.put(out);
        self.1.put(out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok((A::take(from)?, B::take(from)?))
    }
}

/// Packs a struct field by field, in the order given here.
macro_rules! pack_struct {
    ($t:ty { $($field:ident),* $(,)? }) => {
        impl $crate::codec::Pack for $t {
            fn put(&self, out: &mut Vec<u8>) {
                $(self.$field.put(out);)*
            }
            fn take(from: &mut &[u8]) -> Result<Self, $crate::codec::Malformed> {
                Ok(Self { $($field: $crate::codec::Pack::take(from)?),* })
            }
        }
    };
}
pub(crate) use pack_struct;

/// Packs an enum as a number and, for variants with a payload, that payload.
macro_rules! pack_enum {
    ($t:ident { $($code:literal => $unit:ident),* $(,)? ; $($pcode:literal => $var:ident($inner:ty)),* $(,)? }) => {
        impl $crate::codec::Pack for $t {
            fn put(&self, out: &mut Vec<u8>) {
                match self {
                    $($t::$unit => out.push($code),)*
                    $($t::$var(inner) => { out.push($pcode); $crate::codec::Pack::put(inner, out); })*
                }
            }
            fn take(from: &mut &[u8]) -> Result<Self, $crate::codec::Malformed> {
                match <u8 as $crate::codec::Pack>::take(from)? {
                    $($code => Ok($t::$unit),)*
                    $($pcode => Ok($t::$var(<$inner as $crate::codec::Pack>::take(from)?)),)*
                    _ => Err($crate::codec::Malformed),
                }
            }
        }
    };
}
pub(crate) use pack_enum;

pack_enum!(StoreKind { 1 => S3, 2 => Dir, 3 => Memory ; });
pack_enum!(VolumeState { 1 => Creating, 2 => Ready, 3 => Deleting ; });
pack_enum!(AccessMode {
    1 => SingleNodeWriter,
    2 => SingleNodeReader,
    3 => MultiNodeReader,
    4 => MultiNodeSingleWriter,
    5 => MultiNodeMultiWriter,
    6 => SingleNodeSingleWriter,
    7 => SingleNodeMultiWriter ;
});
pack_struct!(PublishSpec { volume, part, node, mode, read_only });
pack_struct!(Publication { volume, part, node, mode, read_only, writer, generation, ending });
pack_struct!(Token { attach, incarnation });
pack_struct!(RangeKey { ino, sub });
pack_struct!(KeyRange { start, end });
pack_struct!(ProbeCheck { name, ok, required, detail });
pack_struct!(StoreRecord { id, name, kind, endpoint, region, bucket, prefix, path_style, credential, probe });
pack_struct!(NodeRecord { id, addr, host, capacity, memory, feature_level });
pack_struct!(VolumeSpec { name, store, capacity, inodes, partitions, replicas, labels });

impl Pack for FsError {
    fn put(&self, out: &mut Vec<u8>) {
        self.code().put(out);
    }
    fn take(from: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(FsError::from_code(u16::take(from)?))
    }
}
