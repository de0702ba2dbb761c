//! How streams of several threads and GPUs wait for each other.
//!
//! A stream waits for an event of another one on the GPUs, but only an event that has been recorded can be waited for. So the host of
//! a stream that is to wait first sees to it that the other stream has been given its part. Every stream has a host thread of its
//! own, so that holds up nothing else; and as nothing is waited for that has not been launched before, streams that share a hardware
//! queue cannot hold up each other for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::watch::Watch;
use super::{Device, Event, Slice, Stream};
use crate::error::Result;

/// A point that a stream comes to again and again.
struct Signal {
    /// By the last bit of the number of times. Two are enough where nobody comes to a point before all who wait have been told to wait
    /// for the time before the last.
    events: [Event; 2],
    /// Times that the stream has been told to come here; wraps.
    given: AtomicU32,
}

impl Signal {
    fn new(device: &Arc<Device>) -> Result<Self> {
        let events = [Event::new(device, false)?, Event::new(device, false)?];
        Ok(Self { events, given: AtomicU32::new(0) })
    }

    /// The stream comes here for the `number`-th time.
    fn give(&self, stream: &Stream, number: u32) -> Result<()> {
        self.events[(number % 2) as usize].record(stream)?;
        self.given.store(number, Ordering::Release);
        Ok(())
    }

    /// The stream waits until another one has come here for the `number`-th time.
    fn wait(&self, stream: &Stream, number: u32, watch: &Watch) -> Result<()> {
        // As numbers that wrap.
        watch.until(|| self.given.load(Ordering::Acquire).wrapping_sub(number) < 1 << 31)?;
        stream.wait(&self.events[(number % 2) as usize])
    }
}

/// Transfers from one rank to another: the k-th send meets the k-th receive.
struct Link {
    /// Receives that have been reached.
    posted: Signal,
    /// Sends that have ended.
    arrived: Signal,
}

/// The end of a link that sends.
pub struct Sender {
    link: Arc<Link>,
    sent: u32,
}

/// The end of a link that receives.
pub struct Receiver {
    link: Arc<Link>,
    received: u32,
}

/// A link between two GPUs that reach each other, or within one.
///
/// # Errors
/// If there is no path.
pub fn link(from: &Arc<Device>, to: &Arc<Device>) -> Result<(Sender, Receiver)> {
    from.reach(to)?;
    let link = Arc::new(Link { posted: Signal::new(to)?, arrived: Signal::new(from)? });
    Ok((Sender { link: Arc::clone(&link), sent: 0 }, Receiver { link, received: 0 }))
}

impl Sender {
    /// Waits for the receive, and copies by a copy engine.
    ///
    /// # Errors
    /// If the driver refuses, or the receive is not reached in time.
    pub fn send(&mut self, stream: &Stream, from: Slice<u8>, to: Slice<u8>, watch: &Watch) -> Result<()> {
        self.sent = self.sent.wrapping_add(1);
        self.link.posted.wait(stream, self.sent, watch)?;
        to.copy_from(stream, from)?;
        self.link.arrived.give(stream, self.sent)
    }
}

impl Receiver {
    /// Says that there is room, and waits for what comes.
    ///
    /// # Errors
    /// If the driver refuses, or the send is not reached in time.
    pub fn receive(&mut self, stream: &Stream, watch: &Watch) -> Result<()> {
        self.received = self.received.wrapping_add(1);
        self.link.posted.give(stream, self.received)?;
        self.link.arrived.wait(stream, self.received, watch)
    }
}

/// A point where the streams of several members wait for each other.
pub struct Meeting {
    /// By member.
    signals: Arc<Vec<Signal>>,
    member: usize,
    met: u32,
}

/// A meeting of members on these GPUs, of which several may be the same.
///
/// # Errors
/// If there is no path between two of them.
pub fn meeting(devices: &[Arc<Device>]) -> Result<Vec<Meeting>> {
    for (one, other) in devices.iter().flat_map(|one| devices.iter().map(move |other| (one, other))) {
        one.reach(other)?;
    }
    let signals = devices.iter().map(Signal::new).collect::<Result<Vec<_>>>()?;
    let signals = Arc::new(signals);
    Ok((0..devices.len()).map(|member| Meeting { signals: Arc::clone(&signals), member, met: 0 }).collect())
}

impl Meeting {
    /// This member's number.
    pub fn member(&self) -> usize {
        self.member
    }

    /// How often the members will have met when they do it next; wraps.
    pub fn upcoming(&self) -> u32 {
        self.met.wrapping_add(1)
    }

    /// What the stream is given from now on runs after all that every member's stream had been given when it came here, and sees what
    /// that has written. All members meet equally often.
    ///
    /// # Errors
    /// If the driver refuses, or a member does not come in time.
    pub fn meet(&mut self, stream: &Stream, watch: &Watch) -> Result<()> {
        self.met = self.met.wrapping_add(1);
        self.signals[self.member].give(stream, self.met)?;
        let others = (0..self.signals.len()).filter(|&other| other != self.member);
        others.into_iter().try_for_each(|other| self.signals[other].wait(stream, self.met, watch))
    }
}
