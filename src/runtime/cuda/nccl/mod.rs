//! Transfers between the GPUs of several processes, by NCCL: a communicator has members, each a GPU of another process, and moves bytes
//! between them on a stream of each.
//!
//! NCCL's rules, and how they are kept: the members of a communicator ask it for the same things in the same order, so each is for one
//! stream of the plan, which has one order. Two kernels of NCCL's that wait for each other on one GPU must both find SMs, so each
//! communicator is told how many it may take, and no kernel but NCCL's waits. Connections are made at the start, by a first
//! transfer that nobody needs ([`Communicator::connect`]), because making them later may wait for all that a GPU does. And nothing holds
//! up the host: calls that go on in the background are watched, so that a member that never comes is given up.

pub(super) mod library;

pub use library::UniqueId;

use std::cell::Cell;
use std::ffi::c_int;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use self::library::{Api, BYTES, Config, Handle, api, code};
use super::watch::Watch;
use super::{Device, Memory, Slice, Stream};
use crate::error::{Error, Result};

/// How often a call in the background is looked at before its thread sleeps in between.
const LOOKS: u32 = 2000;
/// How long the end of a communicator is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A number that a communicator is made from; the same for all its members.
///
/// # Errors
/// If NCCL is missing, or finds no network.
pub fn unique_id() -> Result<UniqueId> {
    let api = api()?;
    let mut id = UniqueId([0; 128]);
    // SAFETY: `id` outlives the call.
    let result = unsafe { (api.unique_id)(&mut id) };
    if result != code::SUCCESS {
        return Err(Error::new(format!("NCCL: making an identifier: {}", api.said(result, std::ptr::null_mut()))));
    }
    Ok(id)
}

/// One member of a communicator. One thread at a time uses it, for one stream.
pub struct Communicator {
    api: &'static Api,
    handle: Handle,
    device: Arc<Device>,
    member: usize,
    members: usize,
    what: String,
}

// SAFETY: NCCL's communicators may be used from any thread, one at a time; methods that use one take `&mut`.
unsafe impl Send for Communicator {}

/// A transfer to or from another member.
#[derive(Clone, Copy, Debug)]
pub enum Transfer {
    /// To that member.
    Send(Slice<u8>, usize),
    /// From that member.
    Receive(Slice<u8>, usize),
}

impl Communicator {
    /// Meets the other members. `what`: what it is for; `most_sms`: how many SMs its kernels may take.
    ///
    /// # Errors
    /// If NCCL is missing or refuses, or a member does not come in time.
    pub fn new(
        device: &Arc<Device>,
        id: UniqueId,
        (member, members): (usize, usize),
        most_sms: u32,
        what: String,
        watch: &Watch,
    ) -> Result<Self> {
        let api = api()?;
        device.bind()?;
        let mut this = Self { api, handle: std::ptr::null_mut(), device: Arc::clone(device), member, members, what };
        let mut config = Config::new(most_sms);
        let number = |of: usize| c_int::try_from(of).unwrap_or(c_int::MAX);
        // SAFETY: all pointers outlive the call; NCCL copies the configuration, and a thread of its own goes on with the handle.
        let result = unsafe { (api.init)(&mut this.handle, number(members), id, number(member), &mut config) };
        this.settle(result, watch)?;
        Ok(this)
    }

    /// Makes connections: those of the transfers that will be asked for. `sends`, `receives`: members; `gathers`: whether all members
    /// will gather.
    ///
    /// # Errors
    /// As for [`Self::transfer`].
    pub fn connect(
        &mut self,
        stream: &Stream,
        (sends, receives): (&[usize], &[usize]),
        gathers: bool,
        watch: &Watch,
    ) -> Result<()> {
        /// Bytes of a first transfer.
        const FEW: usize = 256;
        let memory = Memory::new(&self.device, FEW * (sends.len() + receives.len() + self.members + 1))?;
        let part = |number: usize| memory.all::<u8>().part(number * FEW..(number + 1) * FEW);
        memory.all::<u8>().fill_bytes(stream, 0)?;
        let sends = sends.iter().enumerate().map(|(number, &member)| Transfer::Send(part(number), member));
        let first = sends.len();
        let receives = receives.iter().enumerate();
        let receives = receives.map(|(number, &member)| Transfer::Receive(part(first + number), member));
        let transfers: Vec<Transfer> = sends.chain(receives).collect();
        let first = transfers.len();
        let mut run = || {
            self.transfer(stream, &transfers, watch)?;
            if gathers {
                let into = memory.all::<u8>().part((first + 1) * FEW..(first + 1 + self.members) * FEW);
                self.gather(stream, part(first), into, watch)?;
            }
            let event = super::Event::new(&self.device, false)?;
            event.record(stream)?;
            watch.wait(&event, || format!("the first transfer of {}", self.what))
        };
        let ended = run();
        if ended.is_err() {
            // To free it would wait for what does not end.
            std::mem::forget(memory);
        }
        ended
    }

    /// Moves bytes, all at the same time. Between two members there are as many sends as receives, of the same lengths in the same
    /// order. Those of no bytes are left out.
    ///
    /// # Errors
    /// If NCCL refuses or has failed before, or another process has.
    pub fn transfer(&mut self, stream: &Stream, transfers: &[Transfer], watch: &Watch) -> Result<()> {
        let nothing = |transfer: &Transfer| match transfer {
            Transfer::Send(slice, _) | Transfer::Receive(slice, _) => slice.is_empty(),
        };
        if transfers.iter().all(nothing) {
            return Ok(());
        }
        self.device.bind()?;
        let (api, handle, raw) = (self.api, self.handle, stream.raw().cast());
        // SAFETY: takes nothing.
        let mut worst = unsafe { (api.group_start)() };
        for transfer in transfers {
            let (slice, member, function) = match *transfer {
                Transfer::Send(slice, member) => (slice, member, api.send),
                Transfer::Receive(slice, member) => (slice, member, api.receive),
            };
            if slice.is_empty() {
                continue;
            }
            let member = c_int::try_from(member).unwrap_or(c_int::MAX);
            let address = slice.address() as *mut std::ffi::c_void;
            // SAFETY: the slice is of this GPU, lives until the stream has come past the transfer, and is as long as that; the handle and
            // the stream are alive.
            let result = unsafe { function(address, slice.len(), BYTES, member, handle, raw) };
            worst = if worst == code::SUCCESS || worst == code::IN_PROGRESS { result } else { worst };
        }
        // SAFETY: takes nothing; ends what was started above, whatever came of that.
        let ended = unsafe { (api.group_end)() };
        let worst = if worst == code::SUCCESS || worst == code::IN_PROGRESS { ended } else { worst };
        self.settle(worst, watch)
    }

    /// What each member brings, of the same length, goes to all, by member.
    ///
    /// # Errors
    /// As for [`Self::transfer`].
    ///
    /// # Panics
    /// If there is not as much room as members bring.
    pub fn gather(&mut self, stream: &Stream, mine: Slice<u8>, all: Slice<u8>, watch: &Watch) -> Result<()> {
        assert_eq!(all.len(), mine.len() * self.members, "room for what {} members bring", self.members);
        self.device.bind()?;
        let (from, into) = (mine.address() as *const std::ffi::c_void, all.address() as *mut std::ffi::c_void);
        // SAFETY: both slices are of this GPU and live until the stream has come past this; the handle and the stream are alive.
        let result = unsafe { (self.api.all_gather)(from, into, mine.len(), BYTES, self.handle, stream.raw().cast()) };
        self.settle(result, watch)
    }

    /// The GPU of this member.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// This member's number.
    pub fn member(&self) -> usize {
        self.member
    }

    /// Members.
    pub fn members(&self) -> usize {
        self.members
    }

    /// Waits until what was asked for has been given to the stream.
    fn settle(&self, result: c_int, watch: &Watch) -> Result<()> {
        let result = if result == code::IN_PROGRESS || result == code::SUCCESS { self.state(watch)? } else { result };
        if result == code::SUCCESS {
            return Ok(());
        }
        Err(Error::new(format!("NCCL, {}: {}", self.what, self.api.said(result, self.handle))))
    }

    fn state(&self, watch: &Watch) -> Result<c_int> {
        let state = Cell::new(code::IN_PROGRESS);
        let settled = || {
            let mut now = code::SUCCESS;
            // SAFETY: the handle is alive; `now` outlives the call.
            let asked = unsafe { (self.api.async_error)(self.handle, &mut now) };
            state.set(if asked == code::SUCCESS { now } else { asked });
            state.get() != code::IN_PROGRESS
        };
        for _ in 0..LOOKS {
            if settled() {
                return Ok(state.get());
            }
            thread::yield_now();
        }
        let named = |error: Error| {
            let message = format!("NCCL, {}: {error}", self.what);
            match error.help_text() {
                Some(help) => Error::new(message).help(help),
                None => Error::new(message),
            }
        };
        watch.until(settled).map_err(named)?;
        Ok(state.get())
    }
}

impl Drop for Communicator {
    /// What is under way is given up. That may itself come to no end where a member is gone, and is then left alone.
    fn drop(&mut self) {
        if self.handle.is_null() {
            return;
        }
        let (abort, handle, device) = (self.api.abort, self.handle as usize, Arc::clone(&self.device));
        let (sender, done) = mpsc::channel();
        thread::spawn(move || {
            if device.bind().is_ok() {
                // SAFETY: made in `new`, and not used any more.
                unsafe { abort(handle as Handle) };
            }
            // Nobody waits any more if it took too long.
            let _ = sender.send(());
        });
        let _ = done.recv_timeout(PATIENCE);
    }
}

/// Ends this process as it is. While a GPU waits in one of NCCL's kernels for a process that is gone, to free its memory would wait for
/// ever, and so would the usual way out; the system takes everything back.
pub fn end_process(code: u8) -> ! {
    unsafe extern "C" {
        fn _exit(code: c_int) -> !;
    }
    // SAFETY: the C library's function takes any number, and does not return.
    unsafe { _exit(c_int::from(code)) }
}
