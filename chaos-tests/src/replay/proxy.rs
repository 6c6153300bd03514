//! A TCP gate in front of a server: lets everything through, plays an overloaded S3 server, or holds back what clients
//! send and releases it later, also when the client has died meanwhile.

use anyhow::Result;
use parking_lot::{Condvar, Mutex};
use std::{
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// What the gate does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Everything goes through.
    Open,
    /// Connections of the open gate are cut; every HTTP request gets 503 SlowDown.
    Unavailable,
    /// What clients send waits here until the mode changes.
    Hold,
}

struct State {
    upstream: SocketAddr,
    mode: Mutex<Mode>,
    changed: Condvar,
    ended: AtomicBool,
    refused: AtomicU64,
    held: AtomicU64,
    live: Mutex<Vec<TcpStream>>,
}

/// A running gate; its connections are cut when it is dropped.
pub struct Gate {
    /// Where it listens.
    pub addr: SocketAddr,
    state: Arc<State>,
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.state.ended.store(true, Ordering::SeqCst);
        self.set(Mode::Unavailable);
        let _ = TcpStream::connect(self.addr); // wakes the listener
    }
}

impl Gate {
    /// In front of `upstream` (`host:port`), on any port of loopback.
    pub fn start(upstream: &str) -> Result<Gate> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let state = Arc::new(State {
            upstream: upstream.parse()?,
            mode: Mutex::new(Mode::Open),
            changed: Condvar::new(),
            ended: AtomicBool::new(false),
            refused: AtomicU64::new(0),
            held: AtomicU64::new(0),
            live: Mutex::default(),
        });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = shared.clone();
                // An error is a connection that ended.
                std::thread::spawn(move || drop(shared.serve(client)));
            }
        });
        Ok(Gate { addr, state })
    }
    /// Changes what it does, at once.
    pub fn set(&self, mode: Mode) {
        *self.state.mode.lock() = mode;
        if mode == Mode::Unavailable {
            for socket in self.state.live.lock().drain(..) {
                let _ = socket.shutdown(Shutdown::Both); // it may be closed
            }
        }
        self.state.changed.notify_all();
    }
    /// 503 answers so far.
    pub fn refused(&self) -> u64 {
        self.state.refused.load(Ordering::SeqCst)
    }
    /// Pieces held back so far.
    pub fn held(&self) -> u64 {
        self.state.held.load(Ordering::SeqCst)
    }
}

impl State {
    fn mode(&self) -> Mode {
        *self.mode.lock()
    }
    fn serve(self: Arc<State>, client: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        if self.mode() == Mode::Unavailable {
            return self.refuse(client);
        }
        let server = TcpStream::connect(self.upstream)?;
        server.set_nodelay(true)?;
        {
            let mut live = self.live.lock();
            live.push(client.try_clone()?);
            live.push(server.try_clone()?);
        }
        let (mut from_server, mut to_client) = (server.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from_server, &mut to_client); // ends with either side
            let _ = to_client.shutdown(Shutdown::Write);
        });
        self.forward(client, server)
    }
    fn forward(&self, mut client: TcpStream, mut server: TcpStream) -> std::io::Result<()> {
        let mut buf = vec![0; 64 << 10];
        loop {
            let n = client.read(&mut buf)?;
            let mut mode = self.mode.lock();
            if *mode == Mode::Hold && n > 0 {
                self.held.fetch_add(1, Ordering::SeqCst);
                while *mode == Mode::Hold {
                    self.changed.wait(&mut mode);
                }
            }
            drop(mode);
            if n == 0 {
                return server.shutdown(Shutdown::Write);
            }
            server.write_all(&buf[..n])?;
        }
    }
    /// A small HTTP server that is always overloaded.
    fn refuse(&self, mut client: TcpStream) -> std::io::Result<()> {
        const BODY: &str =
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>SlowDown</Code><Message>injected</Message></Error>";
        let (mut pending, mut buf) = (Vec::new(), vec![0; 64 << 10]);
        loop {
            let head = loop {
                if let Some(end) = pending.windows(4).position(|w| w == b"\r\n\r\n") {
                    break pending.drain(..end + 4).collect::<Vec<u8>>();
                }
                match client.read(&mut buf)? {
                    0 => return Ok(()),
                    n => pending.extend_from_slice(&buf[..n]),
                }
            };
            let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
            let length = text.lines().find_map(|l| l.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let mut body = length.unwrap_or(0);
            if text.contains("expect: 100-continue") {
                body = 0; // it waits for our word
            }
            while pending.len() < body {
                match client.read(&mut buf)? {
                    0 => return Ok(()),
                    n => pending.extend_from_slice(&buf[..n]),
                }
            }
            pending.drain(..body);
            if self.mode() != Mode::Unavailable || self.ended.load(Ordering::SeqCst) {
                return Ok(()); // the next try gets a connection to the server
            }
            self.refused.fetch_add(1, Ordering::SeqCst);
            let reply = format!(
                "HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            );
            client.write_all(reply.as_bytes())?;
        }
    }
}
