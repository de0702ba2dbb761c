//! A connection to another process.

use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::frame::Frame;

/// Both directions of a connection: any thread says something, one hears.
pub struct Connection {
    stream: TcpStream,
    writing: Mutex<()>,
    begun: Instant,
    /// Milliseconds from `begun` to when something was heard last.
    heard: AtomicU64,
    closed: AtomicBool,
}

impl Connection {
    /// `limit`: how long the other end may take nothing.
    pub fn new(stream: TcpStream, limit: Duration) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(Some(limit))?;
        let (heard, closed) = (AtomicU64::new(0), AtomicBool::new(false));
        Ok(Self { stream, writing: Mutex::new(()), begun: Instant::now(), heard, closed })
    }

    /// Says something.
    pub fn say(&self, frame: &Frame) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        frame.write(&mut &self.stream)
    }

    /// Waits for something.
    pub fn hear(&self) -> io::Result<Frame> {
        Frame::read(&mut Heard(self))
    }

    /// Since when the other end says nothing.
    pub fn silent_for(&self) -> Duration {
        self.begun.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }

    /// The other end has closed.
    pub fn ended(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether it has.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Says no more.
    pub fn close(&self) {
        // One that is closed already is closed.
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    /// Neither says nor hears any more.
    pub fn cut(&self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// Notes when bytes come, so that a long message counts as a sign of life too.
struct Heard<'a>(&'a Connection);

impl Read for Heard<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = (&self.0.stream).read(into)?;
        let now = u64::try_from(self.0.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.heard.store(now, Ordering::Relaxed);
        Ok(read)
    }
}
