//! Items: named values with an optional fd, opaque to whoever keeps them (PROTOCOL 42).

use super::protocol::{ITEMS_MAX, Message};
use std::{
    collections::BTreeMap,
    io,
    ops::Bound,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

/// One item.
#[derive(Debug, Default)]
pub struct Item {
    /// Value.
    pub bytes: Vec<u8>,
    /// File.
    pub fd: Option<OwnedFd>,
}

impl Item {
    /// A second one of the same content.
    pub fn duplicate(&self) -> io::Result<Item> {
        Ok(Item { bytes: self.bytes.clone(), fd: self.fd.as_ref().map(OwnedFd::try_clone).transpose()? })
    }
}

/// What one process keeps.
#[derive(Debug)]
pub struct Store {
    items: BTreeMap<String, Item>,
    limit: usize,
}

impl Default for Store {
    /// For one mount.
    fn default() -> Store {
        Store::with_limit(ITEMS_MAX)
    }
}

impl Store {
    /// Takes at most `limit` items.
    pub fn with_limit(limit: usize) -> Store {
        Store { items: BTreeMap::new(), limit }
    }
    /// Looks one up.
    pub fn get(&self, name: &str) -> Option<&Item> {
        self.items.get(name)
    }
    /// Value of an item.
    pub fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.get(name).map(|i| &i.bytes[..])
    }
    /// Fd of an item.
    pub fn fd(&self, name: &str) -> Option<BorrowedFd<'_>> {
        self.get(name)?.fd.as_ref().map(AsFd::as_fd)
    }
    /// All in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items.iter().map(|(n, i)| (n.as_str(), i))
    }
    /// Keeps one; false when there are too many.
    pub fn put(&mut self, name: &str, item: Item) -> bool {
        if self.items.len() >= self.limit && !self.items.contains_key(name) {
            return false;
        }
        self.items.insert(name.to_owned(), item);
        true
    }
    /// Lets one go.
    pub fn remove(&mut self, name: &str) {
        self.items.remove(name);
    }

    /// Answers the messages that are about items; None = another message. The fd belongs to the answer.
    pub fn answer(&mut self, message: &Message, fds: &mut Vec<OwnedFd>) -> Option<(Message, Option<BorrowedFd<'_>>)> {
        Some(match message {
            Message::Put { .. } if fds.len() > 1 => (Message::Error("one fd at most".into()), None),
            Message::Put { name, bytes } => {
                let item = Item { bytes: bytes.clone(), fd: fds.pop() };
                let kept = self.put(name, item);
                (if kept { Message::Ok } else { Message::Error("too many items".into()) }, None)
            }
            Message::Get { name } => match self.items.get(name) {
                Some(item) => (Message::Item { bytes: item.bytes.clone() }, item.fd.as_ref().map(AsFd::as_fd)),
                None => (Message::Missing, None),
            },
            Message::List => (Message::Names(self.items.keys().take(ITEMS_MAX).cloned().collect()), None),
            Message::ListAfter { name } => {
                let after = self.items.range::<str, _>((Bound::Excluded(name.as_str()), Bound::Unbounded));
                (Message::Names(after.take(ITEMS_MAX).map(|(n, _)| n.clone()).collect()), None)
            }
            Message::Remove { name } => {
                self.remove(name);
                (Message::Ok, None)
            }
            _ => return None,
        })
    }
}
