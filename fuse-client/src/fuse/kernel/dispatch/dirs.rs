//! Directory streams.

use super::parts;
use crate::fuse::kernel::abi::IO_BYTES;
use crate::fuse::kernel::decode::ReadIn;
use crate::fuse::kernel::encode::opened_out;
use crate::fuse::kernel::run::{Class, Job};
use crate::fuse::kernel::session::Server;
use fusefs_types::Ino;
use std::sync::Arc;

pub(super) fn opendir(server: &Arc<Server>, job: Job, ino: Ino, flags: i32) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.opendir(&rq, ino, flags).await };
    server.run(job, Class::Query, work, |reply, r| reply.result(r.map(|o| opened_out(&o))));
}

pub(super) fn readdir(server: &Arc<Server>, job: Job, ino: Ino, args: ReadIn, plus: bool) {
    let (root, (vfs, rq), names) = (server.root, parts(server, &job), server.vfs.clone());
    let size = args.size.min(IO_BYTES) as usize;
    let work = async move {
        if plus {
            vfs.readdir_known(&rq, ino, args.fh, args.offset).await
        } else {
            vfs.readdir(&rq, ino, args.fh, args.offset, false).await
        }
    };
    server.run(job, Class::Query, work, move |reply, r| match r {
        Ok(page) => {
            let mut room = Vec::with_capacity(size);
            let mut items = (0..).map_while(|i| names.dir_item(&page, i, plus));
            while let Some(item) = items.next()
                && root.dirent(&mut room, size, &item, plus)
            {}
            reply.data(&room)
        }
        Err(e) => reply.empty(Err(e)),
    });
}

pub(super) fn releasedir(server: &Arc<Server>, job: Job, ino: Ino, fh: u64) {
    server.vfs.releasedir(ino, fh);
    if job.reply.empty(Ok(())) {
        server.vfs.replied(&job.rq);
    }
}

pub(super) fn fsyncdir(server: &Arc<Server>, job: Job, ino: Ino) {
    let (vfs, rq) = parts(server, &job);
    let work = async move { vfs.fsyncdir(&rq, ino).await };
    server.run(job, Class::Query, work, |reply, r| reply.empty(r));
}
