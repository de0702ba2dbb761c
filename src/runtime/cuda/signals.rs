//! How streams of several threads and GPUs wait for each other.
//!
//! A stream waits for an event of another one on the GPUs, but only an event that has been recorded can be waited for. So the host of
//! a stream that is to wait first sees to it that the other stream has been given its part. Every stream has a host thread of its
//! own, so that holds up nothing else; and as nothing is waited for that has not been launched before, streams that share a hardware
//! queue cannot hold up each other for ever.
//!
//! A link may also lead to another process; then a send and a receive are NCCL's, whose kernels wait for each other.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::nccl::{Communicator, Transfer};
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
pub struct Sender(Way);

/// The end of a link that receives.
pub struct Receiver(Way);

/// How messages go.
enum Way {
    /// They are copied into the receiver's memory. With it, how many there were.
    Memory(Arc<Link>, u32),
    /// To another process, or from one: the other member of a communicator.
    Network(Communicator),
}

/// A link between two GPUs that reach each other, or within one.
///
/// # Errors
/// If there is no path.
pub fn link(from: &Arc<Device>, to: &Arc<Device>) -> Result<(Sender, Receiver)> {
    from.reach(to)?;
    let link = Arc::new(Link { posted: Signal::new(to)?, arrived: Signal::new(from)? });
    Ok((Sender(Way::Memory(Arc::clone(&link), 0)), Receiver(Way::Memory(link, 0))))
}

impl Sender {
    /// The end of a link to another process.
    ///
    /// # Panics
    /// If the communicator has not two members.
    pub fn to_process(communicator: Communicator) -> Self {
        assert_eq!(communicator.members(), 2, "the two ends of a link");
        Self(Way::Network(communicator))
    }

    /// Waits for the receive, and copies by a copy engine, or has NCCL send. `to`: where the receive puts it, if that is of this process.
    ///
    /// # Errors
    /// If the driver or NCCL refuses, or the receive is not reached in time.
    pub fn send(&mut self, stream: &Stream, from: Slice<u8>, to: Slice<u8>, watch: &Watch) -> Result<()> {
        match &mut self.0 {
            Way::Memory(link, sent) => {
                *sent = sent.wrapping_add(1);
                link.posted.wait(stream, *sent, watch)?;
                to.copy_from(stream, from)?;
                link.arrived.give(stream, *sent)
            }
            Way::Network(communicator) => {
                let other = 1 - communicator.member();
                communicator.transfer(stream, &[Transfer::Send(from, other)], watch)
            }
        }
    }
}

impl Receiver {
    /// The end of a link from another process.
    ///
    /// # Panics
    /// If the communicator has not two members.
    pub fn from_process(communicator: Communicator) -> Self {
        assert_eq!(communicator.members(), 2, "the two ends of a link");
        Self(Way::Network(communicator))
    }

    /// Says that there is room, and waits for what comes, on the GPU. `into`: the room.
    ///
    /// # Errors
    /// If the driver or NCCL refuses, or the send is not reached in time.
    pub fn receive(&mut self, stream: &Stream, into: Slice<u8>, watch: &Watch) -> Result<()> {
        match &mut self.0 {
            Way::Memory(link, received) => {
                *received = received.wrapping_add(1);
                link.posted.give(stream, *received)?;
                link.arrived.wait(stream, *received, watch)
            }
            Way::Network(communicator) => {
                let other = 1 - communicator.member();
                communicator.transfer(stream, &[Transfer::Receive(into, other)], watch)
            }
        }
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
