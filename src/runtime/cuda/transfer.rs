//! Channels: the k-th send from one GPU meets the k-th receive on another one.
//!
//! Both ends are in one process. Neither waits on the host: whichever of a send and its receive is launched second gives the copy to
//! the channel's own stream, which runs it on a copy engine once both streams have come so far, and then sets a flag at each end.
//! So no order of launches can block, and no SM is used.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::flags::Flags;
use super::stream::Priority;
use super::{Device, Event, Slice, Stream};
use crate::error::{Error, Result};

/// The end that sends.
pub struct Sender {
    channel: Arc<Channel>,
}

/// The end that receives.
pub struct Receiver {
    channel: Arc<Channel>,
}

struct Channel {
    /// Of the sender's GPU.
    copies: Stream,
    sent: Arc<Flags>,
    received: Arc<Flags>,
    waiting: Mutex<Waiting>,
}

/// What has not met yet: at most one of the two has elements.
#[derive(Default)]
struct Waiting {
    sends: VecDeque<End>,
    receives: VecDeque<End>,
    /// Copies that have been launched; wraps as flags do.
    met: u32,
}

/// Memory, and when it may be read or written.
struct End {
    bytes: Slice<u8>,
    ready: Event,
}

/// A channel from one GPU to another one, or to the same.
///
/// # Errors
/// If there is no path between them, or no memory left.
pub fn channel(from: &Arc<Device>, to: &Arc<Device>) -> Result<(Sender, Receiver)> {
    from.reach(to)?;
    let channel = Arc::new(Channel {
        copies: Stream::new(from, Priority::High)?,
        sent: Arc::new(Flags::new(from, 1)?),
        received: Arc::new(Flags::new(to, 1)?),
        waiting: Mutex::default(),
    });
    Ok((Sender { channel: Arc::clone(&channel) }, Receiver { channel }))
}

impl Sender {
    /// Sends what `from` holds once the stream has come to here. What is launched after it may overwrite it.
    ///
    /// # Errors
    /// If the driver refuses, or the receive that it meets is of another length: then neither ever ends, until it is released.
    pub fn send(&mut self, stream: &Stream, from: Slice<u8>) -> Result<()> {
        self.channel.join(stream, from, |waiting| &mut waiting.sends)?;
        stream.signal_and_wait(&[], &[self.channel.sent.flag(0)], self.channel.sent.next())
    }

    /// What its stream waits for. From any thread [`Flags::release`] ends that, should the other end have failed.
    pub fn flags(&self) -> &Arc<Flags> {
        &self.channel.sent
    }
}

impl Receiver {
    /// Receives into `into`, which may be overwritten once the stream has come to here. What is launched after it can read it.
    ///
    /// # Errors
    /// As [`Sender::send`].
    pub fn receive(&mut self, stream: &Stream, into: Slice<u8>) -> Result<()> {
        self.channel.join(stream, into, |waiting| &mut waiting.receives)?;
        stream.signal_and_wait(&[], &[self.channel.received.flag(0)], self.channel.received.next())
    }

    /// What its stream waits for. From any thread [`Flags::release`] ends that, should the other end have failed.
    pub fn flags(&self) -> &Arc<Flags> {
        &self.channel.received
    }
}

impl Channel {
    /// Puts an end where it belongs, and launches the copy if the other one is there.
    fn join(&self, stream: &Stream, bytes: Slice<u8>, kind: fn(&mut Waiting) -> &mut VecDeque<End>) -> Result<()> {
        let ready = Event::new(stream.device(), false)?;
        ready.record(stream)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        kind(&mut waiting).push_back(End { bytes, ready });
        while let (Some(send), Some(receive)) = (waiting.sends.front(), waiting.receives.front()) {
            if send.bytes.len() != receive.bytes.len() {
                let (sent, room) = (send.bytes.len(), receive.bytes.len());
                return Err(Error::new(format!("{sent} bytes are sent where {room} are received")));
            }
            self.copies.wait(&send.ready)?;
            self.copies.wait(&receive.ready)?;
            receive.bytes.copy_from(&self.copies, send.bytes)?;
            let met = waiting.met.wrapping_add(1);
            self.copies.signal_and_wait(&[self.received.flag(0), self.sent.flag(0)], &[], met)?;
            waiting.met = met;
            waiting.sends.pop_front();
            waiting.receives.pop_front();
        }
        Ok(())
    }
}
