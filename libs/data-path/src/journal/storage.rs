//! The files below the journal, behind a small trait so that tests can break them.

use std::{
    fs::File,
    io::{self, IoSlice},
    os::unix::fs::FileExt,
};

/// One preallocated file. Nothing here is asynchronous: it is the page cache of a local disk.
pub trait Storage: Send + Sync + 'static {
    /// Reads at a place; less than asked only at the end of the file.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
    /// Writes all parts one behind the other.
    fn write_at(&self, parts: &[&[u8]], at: u64) -> io::Result<()>;
    /// What was written survives a power loss when this returns.
    fn sync(&self) -> io::Result<()>;
    /// Bytes of the file.
    fn size(&self) -> io::Result<u64>;
    /// Cuts the file to nothing: the last means to make a journal void whose disk takes no writes.
    fn clear(&self) -> io::Result<()>;
}

impl Storage for File {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match FileExt::read_at(self, &mut buffer[done..], at + done as u64) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(done)
    }

    fn write_at(&self, parts: &[&[u8]], at: u64) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]), IoSlice::new(&[])];
        let [head, body] = match parts {
            [one] => [*one, &[]],
            [head, body] => [*head, *body],
            _ => return Err(io::Error::from(io::ErrorKind::InvalidInput)),
        };
        (slices[0], slices[1]) = (IoSlice::new(head), IoSlice::new(body));
        let (mut rest, mut at) = (&mut slices[..], at);
        let mut left = head.len() + body.len();
        while left > 0 {
            let offset = libc::off_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            match nix::sys::uio::pwritev(self, rest, offset) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Ok(n) => {
                    (left, at) = (left - n, at + n as u64);
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn clear(&self) -> io::Result<()> {
        self.set_len(0)
    }
}
