//! A mount that cannot go on: every request is answered ESTALE until it is unmounted, so that nothing hangs (PROTOCOL 41).

use super::abi::{self, REQUEST_BYTES, op};
use super::buffers::Pinned;
use super::decode::Header;
use super::init::{InitRecord, Negotiated, resend};
use super::reply::Link;
use super::session::Recovery;
use super::slots::Slots;
use super::stats::ServeStats;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Serves on the calling thread until the unmount. `init` may be a record that this version cannot read: then an INIT gets
/// EPROTO. Requests that an earlier process left are answered too.
pub fn poison(fd: OwnedFd, init: &InitRecord, recovery: Recovery) -> io::Result<()> {
    let (ended, abandoned) = (AtomicBool::new(false), AtomicBool::new(false));
    let link = Link { device: File::from(fd), stats: Arc::new(ServeStats::default()), ended, abandoned };
    let negotiated = init.open().ok();
    // A kernel without RESEND refuses. It is asked in either mode: a record that cannot be read does not tell the mode.
    let _ = link.write(&resend());
    if let Recovery::Slots(file) = recovery {
        for mut held in Slots::open(file)?.occupied()? {
            refuse(&link, held.message(), negotiated.as_ref());
            held.release();
        }
    }
    let mut buffer = Pinned::new(REQUEST_BYTES)?;
    loop {
        match (&link.device).read(buffer.ready()?) {
            Ok(0) => return Ok(()),
            Ok(n) => refuse(&link, buffer.bytes().get(..n).unwrap_or_default(), negotiated.as_ref()),
            Err(e) => match e.raw_os_error() {
                Some(libc::EINTR | libc::EAGAIN | libc::ENOENT) => {}
                Some(libc::ENODEV | libc::ECONNABORTED) => return Ok(()),
                _ => return Err(e),
            },
        }
    }
}

fn refuse(link: &Link, message: &[u8], negotiated: Option<&Negotiated>) {
    let Ok(header) = Header::parse(message) else { return };
    match (header.opcode, negotiated) {
        _ if header.unanswered() => {}
        (op::INIT, Some(negotiated)) => _ = link.write(&negotiated.reply(header.raw_unique)),
        (op::INIT, None) => link.error(header.raw_unique, libc::EPROTO),
        // The last close of a file cannot fail, and nobody is told.
        (op::RELEASE | op::RELEASEDIR, _) => {
            _ = link.write(abi::Out::default().finish(0, header.raw_unique, 0));
        }
        _ => link.error(header.raw_unique, libc::ESTALE),
    }
}
