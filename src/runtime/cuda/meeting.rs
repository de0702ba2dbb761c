//! Meetings: points that the streams of several GPUs pass only together.

use std::sync::Arc;

use super::flags::Flags;
use super::{Device, Slice, Stream};
use crate::error::Result;

/// One member's part.
pub struct Meeting {
    flags: Vec<Arc<Flags>>,
    member: usize,
    /// This member's flags at the others.
    signals: Vec<Slice<u32>>,
    /// The others' flags here.
    awaited: Vec<Slice<u32>>,
}

/// A meeting of one member on each of `devices`, of which several may be the same. By member.
///
/// # Errors
/// If a GPU cannot reach the memory of another one, or has none left.
pub fn meeting(devices: &[Arc<Device>]) -> Result<Vec<Meeting>> {
    for (one, other) in devices.iter().flat_map(|one| devices.iter().map(move |other| (one, other))) {
        one.reach(other)?;
    }
    let flags = devices.iter().map(|device| Ok(Arc::new(Flags::new(device, devices.len())?)));
    let flags = flags.collect::<Result<Vec<_>>>()?;
    let member = |member: usize| {
        let others = || (0..devices.len()).filter(move |&other| other != member);
        Meeting {
            flags: flags.clone(),
            member,
            signals: others().map(|other| flags[other].flag(member)).collect(),
            awaited: others().map(|other| flags[member].flag(other)).collect(),
        }
    };
    Ok((0..devices.len()).map(member).collect())
}

impl Meeting {
    /// Its own number.
    pub fn member(&self) -> usize {
        self.member
    }

    /// What is launched after it, on any member's stream, runs after what was launched before it on all of them, and sees what that
    /// has written. All members meet equally often.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn meet(&mut self, stream: &Stream) -> Result<()> {
        let number = self.flags().next();
        stream.signal_and_wait(&self.signals, &self.awaited, number)
    }

    /// The number of the meeting that comes next, the same for all members.
    pub(super) fn upcoming(&self) -> u32 {
        self.flags().upcoming()
    }

    /// What its stream waits for. From any thread [`Flags::release`] ends that, should another member have failed.
    pub fn flags(&self) -> &Arc<Flags> {
        &self.flags[self.member]
    }
}
