//! Reads the log back at start: cuts a torn tail, refuses damage below the synced mark.

use super::{
    format::{self, HardState, Key, Kind, Mark},
    segments::{self, Segment, Segments},
    slots::{GroupLog, Slot},
};
use crate::{
    api::HostError,
    codec::{self, Bad, Reader},
    disk::Disk,
};
use bytes::Bytes;
use std::{collections::BTreeMap, io};

#[derive(Default)]
struct Found {
    state: HardState,
    state_at: Option<(u64, u32)>,
    /// index -> term, place, record length.
    entries: BTreeMap<u64, (u64, Mark, u32)>,
}

fn damaged(what: impl Into<String>) -> HostError {
    HostError::Damaged(what.into())
}

/// Everything the log holds, and where the next batch goes.
pub(crate) fn recover(
    disk: &dyn Disk,
    seed: u32,
    fresh: bool,
) -> Result<(BTreeMap<Key, GroupLog>, Segments), HostError> {
    let head = segments::read_head(disk, seed).map_err(|e| match e.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => damaged("log/HEAD is damaged"),
        _ => HostError::Io(e),
    })?;
    let mut segments = Segments::default();
    let mut found = BTreeMap::new();
    let Some((first, last)) = head else {
        return if fresh { Ok((BTreeMap::new(), segments)) } else { Err(damaged("log/HEAD is missing")) };
    };
    remove_leftovers(disk, first, last)?;
    // A killed process may have left these in the page cache only; from here on they count as durable.
    disk.sync_dir("log")?;
    let mut end: Option<Mark> = None;
    for number in first..=last {
        let name = segments::segment_name(number);
        let file = disk.open(&name).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => damaged(format!("{name} is missing")),
            _ => HostError::Io(e),
        })?;
        let mut data = vec![0; usize::try_from(file.len()?).map_err(|_| damaged("a segment is too large"))?];
        file.read_at(0, &mut data)?;
        let data = Bytes::from(data);
        let prev_end = format::check_segment_header(seed, number, &data)
            .map_err(|_| damaged(format!("{name}: bad segment header")))?;
        if end.is_some_and(|end| end.offset != prev_end) {
            return Err(damaged(format!("{}: damaged below the synced mark", segments::segment_name(number - 1))));
        }
        let stop = scan(seed, number, &data, &mut found).map_err(|_| damaged(format!("{name}: undecodable record")))?;
        if number == last && later_batch(seed, number, &data, stop) {
            return Err(damaged(format!("{name}: damaged at {stop}, below the synced mark")));
        }
        if number == last {
            file.sync()?;
        }
        segments.all.insert(number, Segment { file, capacity: data.len() as u64, live: 0, dead_lsn: 0 });
        end = Some(Mark { segment: number, offset: stop });
    }
    segments.end = end.unwrap_or_default();
    segments.zeroed = segments.end.offset;
    let groups = settle(found, &mut segments)?;
    Ok((groups, segments))
}

/// Removes what an attempt left that never got a superblock.
pub(crate) fn wipe(disk: &dyn Disk) -> io::Result<()> {
    for name in disk.list("log")? {
        disk.remove(&format!("log/{name}"))?;
    }
    Ok(())
}

/// Files outside `first..=last` come from a crash between creating or removing a segment and writing `HEAD`.
fn remove_leftovers(disk: &dyn Disk, first: u64, last: u64) -> io::Result<()> {
    for name in disk.list("log")? {
        let Some(number) = name.strip_suffix(".seg").and_then(|n| u64::from_str_radix(n, 16).ok()) else { continue };
        if !(first..=last).contains(&number) {
            disk.remove(&format!("log/{name}"))?;
        }
    }
    Ok(())
}

/// Replays the batches of one segment; answers where the valid ones end.
fn scan(seed: u32, segment: u64, data: &Bytes, found: &mut BTreeMap<Key, Found>) -> Result<u64, Bad> {
    let mut at = format::SEGMENT_HEADER;
    loop {
        let start = usize::try_from(at).map_err(|_| Bad)?;
        let Some(bytes) = data.get(start..) else { return Ok(at) };
        let Some(head) = format::check_batch_header(seed, Mark { segment, offset: at }, bytes) else { return Ok(at) };
        let payload_start = start + format::BATCH_HEADER;
        let payload_end = payload_start + head.len as usize;
        let Some(payload) = data.get(payload_start..payload_end) else { return Ok(at) };
        if !format::check_payload(seed, &head, payload) {
            return Ok(at);
        }
        let mut rest = data.slice(payload_start..payload_end);
        while !rest.is_empty() {
            let offset = (payload_end - rest.len()) as u64;
            let before = rest.len();
            let (kind, key, body) = format::get_record(seed, &mut rest)?;
            let len = u32::try_from(before - rest.len()).map_err(|_| Bad)?;
            replay(found.entry(key).or_default(), kind, body, Mark { segment, offset }, len)?;
        }
        at = (payload_end as u64).next_multiple_of(8);
    }
}

fn replay(found: &mut Found, kind: Kind, body: Bytes, at: Mark, len: u32) -> Result<(), Bad> {
    match kind {
        Kind::Entry => {
            let id = codec::get_log_id(&mut Reader(body))?;
            found.entries.insert(id.index, (id.leader_id.term, at, len));
        }
        Kind::Truncate => {
            let from = Reader(body).u64()?;
            found.entries.split_off(&from);
        }
        Kind::State => {
            found.state = format::get_state(body)?;
            found.state_at = Some((at.segment, len));
        }
    }
    Ok(())
}

/// Is there a whole batch header after `stop`? Then what is at `stop` had been synced: batches are written one by one.
fn later_batch(seed: u32, segment: u64, data: &Bytes, stop: u64) -> bool {
    let mut at = stop + 8;
    while let Some(bytes) = usize::try_from(at).ok().and_then(|a| data.get(a..)) {
        if bytes.len() < format::BATCH_HEADER {
            return false;
        }
        if let Some(head) = format::check_batch_header(seed, Mark { segment, offset: at }, bytes)
            && (head.synced.segment, head.synced.offset) > (segment, stop)
        {
            return true;
        }
        at += 8;
    }
    false
}

/// Turns what was found into the in-memory index; gaps are damage.
fn settle(found: BTreeMap<Key, Found>, segments: &mut Segments) -> Result<BTreeMap<Key, GroupLog>, HostError> {
    let mut groups = BTreeMap::new();
    for (key, mut f) in found {
        let next = f.state.purged.map_or(0, |p| p.index + 1);
        let live = if f.state.tombstone { BTreeMap::new() } else { f.entries.split_off(&next) };
        let mut group = GroupLog { state: f.state, state_at: f.state_at, ..GroupLog::default() };
        if let Some((segment, len)) = f.state_at {
            segments.live(segment, len);
        }
        group.first = live.keys().next().copied().unwrap_or(next);
        if group.state.purged.is_some() && group.first > next {
            return Err(damaged(format!("group {}: entries from {next} on are missing", key.group)));
        }
        for (i, (index, (term, at, len))) in live.into_iter().enumerate() {
            if index != group.first + i as u64 {
                return Err(damaged(format!("group {}: entry {} is missing", key.group, group.first + i as u64)));
            }
            segments.live(at.segment, len);
            group.appended_bytes += u64::from(len);
            group.slots.push_back(Slot { term, lsn: 0, at: Some((at, len)), cached: None, size: len as usize });
        }
        groups.insert(key, group);
    }
    Ok(groups)
}
