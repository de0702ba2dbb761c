//! Several processes that run one plan, on one host or on several: who is there, what they tell each other, and that all end when one
//! fails. Nothing of it is about GPUs; tensors do not go this way.
//!
//! Every process has a connection to process 0, which listens. Each says that it is alive several times within the time-out; who is
//! not heard of for that long, whose connection closes, or who says that it has failed, is named to all others, and that is an
//! [`Alarm`] in each of them. `tests/cluster.rs` kills processes and looks at what the others say.

mod alarm;
mod connection;
mod environment;
mod frame;
mod meet;

pub use alarm::Alarm;
pub use environment::{Launcher, Seat, seat};
pub use frame::Who;

use std::collections::BTreeMap;
use std::fmt;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use alarm::with_help;
use connection::Connection;
use frame::{Failed, Frame};

/// How long a process that ends waits for the others to have heard why.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// How long a failure waits for one of another process that explains it: a GPU's library may see that a partner is gone before the
/// connection to that process has closed.
const EXPLANATION: Duration = Duration::from_millis(500);
/// How much longer than the time-out nothing may go on in a process until it ends itself: whoever waits in it has then said more.
const LONGER: Duration = Duration::from_secs(1);
/// How often a process says at least that it is alive: some times in the shortest time-out.
const BEAT: Duration = Duration::from_millis(250);
/// How often who waits looks whether something has failed.
const LOOK: Duration = Duration::from_millis(20);

/// All processes, seen from one of them.
pub struct Cluster {
    seat: Seat,
    shared: Arc<Shared>,
    limit: Duration,
    /// Meetings so far: all processes have the same ones in the same order.
    meetings: AtomicU64,
    beating: Option<thread::JoinHandle<()>>,
}

/// What the threads of a process share.
struct Shared {
    process: u32,
    /// By number.
    all: Vec<Who>,
    alarm: Arc<Alarm>,
    /// By process at the other end: of process 0 all others, of another one process 0.
    connections: BTreeMap<u32, Connection>,
    inbox: Mutex<Inbox>,
    arrived: Condvar,
    /// Held while others are told of a failure: nobody closes meanwhile.
    telling: Mutex<()>,
    /// This process is done, so that connections may close.
    leaving: AtomicBool,
}

/// What has come and has not been asked for yet.
#[derive(Default)]
struct Inbox {
    /// By meeting and process.
    gathered: BTreeMap<u64, BTreeMap<u32, Vec<u8>>>,
    /// By meeting.
    given: BTreeMap<u64, Vec<u8>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} of {}", self.seat.process, self.seat.processes)
    }
}

impl Cluster {
    /// Meets the other processes. `name`: what this one does, for messages; `terms`: what all must agree on, as names and values;
    /// `limit`: how long to wait for others, here and later.
    ///
    /// # Errors
    /// If a process does not come in time, two disagree, or the address is none; says which.
    pub fn join(seat: Seat, name: String, terms: Vec<(String, String)>, limit: Duration) -> Result<Self> {
        let who = Who { name, host: host(), pid: std::process::id() };
        let (all, streams) = match seat.process {
            0 => meet::as_first(&seat, who, &terms, limit)?,
            _ => meet::as_other(&seat, who, terms, limit)?,
        };
        Self::of(seat, all, streams, limit)
    }

    fn of(seat: Seat, all: Vec<Who>, streams: BTreeMap<u32, TcpStream>, limit: Duration) -> Result<Self> {
        let connections = streams.into_iter().map(|(process, stream)| Ok((process, Connection::new(stream, limit)?)));
        let connections = connections.collect::<std::io::Result<_>>();
        let connections = connections
            .map_err(|error| Error::new(format!("a connection to another process cannot be used: {error}")))?;
        let shared = Arc::new(Shared {
            process: seat.process,
            all,
            alarm: Arc::default(),
            connections,
            inbox: Mutex::default(),
            arrived: Condvar::new(),
            telling: Mutex::new(()),
            leaving: AtomicBool::new(false),
        });
        for &process in shared.connections.keys() {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.listen(process));
        }
        let beating = {
            let shared = Arc::clone(&shared);
            thread::spawn(move || shared.beat(limit))
        };
        Ok(Self { seat, shared, limit, meetings: AtomicU64::new(0), beating: Some(beating) })
    }

    /// What this process was told.
    pub fn seat(&self) -> &Seat {
        &self.seat
    }

    /// How long others are waited for.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// All processes, by number.
    pub fn all(&self) -> &[Who] {
        &self.shared.all
    }

    /// Once a process has failed, this one may take so long to end by itself; then it is ended, by what is given. For a thread that waits
    /// in a call that does not return.
    pub fn watch_over(&self, grace: Duration, end: impl FnOnce(Error) + Send + 'static) {
        let alarm = Arc::clone(&self.shared.alarm);
        thread::spawn(move || {
            loop {
                thread::sleep(LOOK);
                if let Some(failure) = alarm.failure() {
                    thread::sleep(grace);
                    return end(failure);
                }
            }
        });
    }

    /// Is raised when a process fails.
    pub fn alarm(&self) -> &Arc<Alarm> {
        &self.shared.alarm
    }

    /// Process 0 gets what each one brings, by number; the others get nothing. All processes do the same meetings in the same order.
    /// `what`: for messages, what it is that others do not come to.
    ///
    /// # Errors
    /// If a process fails, or does not bring anything in time.
    pub fn gather(&self, bytes: Vec<u8>, what: &str) -> Result<Option<Vec<Vec<u8>>>> {
        let number = self.meetings.fetch_add(1, Ordering::Relaxed);
        if self.seat.process > 0 {
            self.shared.say(0, &Frame::Gather(number, bytes))?;
            return Ok(None);
        }
        let all = self.seat.processes;
        let lack = |inbox: &Inbox| -> Vec<u32> {
            let come = inbox.gathered.get(&number);
            (1..all).filter(|process| !come.is_some_and(|come| come.contains_key(process))).collect()
        };
        let late = |inbox: &Inbox| {
            let missing: Vec<String> = lack(inbox).into_iter().map(|process| self.shared.name(process)).collect();
            Error::new(format!("{} did not come to {what} within {} s", missing.join(", "), self.limit.as_secs()))
        };
        let mut come = self.shared.until(Some(self.limit), late, |inbox| {
            lack(inbox).is_empty().then(|| inbox.gathered.remove(&number).unwrap_or_default())
        })?;
        come.insert(0, bytes);
        Ok(Some(come.into_values().collect()))
    }

    /// All get what process 0 tells, which alone says something. There is no limit to how long that may take, as long as it is alive.
    ///
    /// # Errors
    /// If a process fails.
    pub fn broadcast(&self, bytes: Option<Vec<u8>>) -> Result<Vec<u8>> {
        let number = self.meetings.fetch_add(1, Ordering::Relaxed);
        if self.seat.process == 0 {
            let bytes = bytes.unwrap_or_default();
            let frame = Frame::Give(number, bytes);
            (1..self.seat.processes).try_for_each(|process| self.shared.say(process, &frame))?;
            let Frame::Give(_, bytes) = frame else { return Ok(Vec::new()) };
            return Ok(bytes);
        }
        let late = |_: &Inbox| Error::new("process 0 is late");
        self.shared.until(None, late, |inbox| inbox.given.remove(&number))
    }

    /// Everybody gets what everybody brings, by number.
    ///
    /// # Errors
    /// If a process fails, or does not come in time. `what`: as for [`Self::gather`].
    pub fn share(&self, bytes: Vec<u8>, what: &str) -> Result<Vec<Vec<u8>>> {
        let gathered = self.gather(bytes, what)?;
        let joined = gathered.map(|all| {
            let one = |bytes: &Vec<u8>| [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
            all.iter().flat_map(one).collect::<Vec<u8>>()
        });
        let joined = self.broadcast(joined)?;
        let mut rest = joined.as_slice();
        let mut all = Vec::new();
        while let Some((length, behind)) = rest.split_first_chunk::<8>() {
            let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
            let (bytes, behind) =
                behind.split_at_checked(length).ok_or_else(|| Error::new("process 0 says what is no list"))?;
            all.push(bytes.to_vec());
            rest = behind;
        }
        Ok(all)
    }

    /// Waits for all.
    ///
    /// # Errors
    /// As [`Self::share`].
    pub fn meet(&self, what: &str) -> Result<()> {
        self.gather(Vec::new(), what)?;
        self.broadcast(None).map(|_| ())
    }

    /// At the end of a process that fails: tells the others, and gives the error that explains this one, which is its own or that of
    /// another process. After this the process is to end.
    pub fn fail(&self, error: Error) -> Error {
        let (shared, start) = (&self.shared, Instant::now());
        while !shared.alarm.is_raised() && start.elapsed() < EXPLANATION {
            thread::sleep(LOOK);
        }
        let told = match shared.alarm.failure() {
            Some(other) => other,
            None => {
                let mine = format!("{}: {error}", shared.name(shared.process));
                let failed = Failed { message: mine, help: error.help_text().map(str::to_owned) };
                shared.alarm.raise(&error);
                shared.tell_all(&failed, None);
                error
            }
        };
        self.close();
        told
    }

    /// At the end of a process that has done its part.
    ///
    /// # Errors
    /// If another one fails before it has done its own.
    pub fn leave(&self) -> Result<()> {
        self.meet("the end of the run")?;
        self.shared.leaving.store(true, Ordering::Release);
        for connection in self.shared.connections.values() {
            // Who has closed already is done too.
            let _ = connection.say(&Frame::Bye);
        }
        self.close();
        Ok(())
    }

    /// Says no more, and waits a little until the others have read all.
    fn close(&self) {
        self.shared.leaving.store(true, Ordering::Release);
        drop(self.shared.telling.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.connections.values().for_each(Connection::close);
        let start = Instant::now();
        while start.elapsed() < LAST_WORDS && !self.shared.connections.values().all(Connection::is_closed) {
            thread::sleep(LOOK);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.shared.leaving.store(true, Ordering::Release);
        self.shared.connections.values().for_each(Connection::cut);
        if let Some(beating) = self.beating.take() {
            // It does not panic, and if it did there would be nothing to do about it.
            let _ = beating.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process in words.
    fn name(&self, process: u32) -> String {
        match self.all.get(process as usize) {
            Some(Who { name, host, pid }) => format!("process {process} ({name}; host {host}, pid {pid})"),
            None => format!("process {process}"),
        }
    }

    /// Waits for something in the inbox.
    fn until<V>(
        &self,
        limit: Option<Duration>,
        late: impl Fn(&Inbox) -> Error,
        mut look: impl FnMut(&mut Inbox) -> Option<V>,
    ) -> Result<V> {
        let start = Instant::now();
        let mut inbox = self.lock();
        loop {
            // What has come counts, even if its sender has gone since.
            if let Some(found) = look(&mut inbox) {
                return Ok(found);
            }
            if let Some(failure) = self.alarm.failure() {
                return Err(failure);
            }
            if limit.is_some_and(|limit| start.elapsed() > limit) {
                return Err(late(&inbox).help("`--time-out` sets how long to wait"));
            }
            inbox = self.arrived.wait_timeout(inbox, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Says something to a process.
    fn say(&self, process: u32, frame: &Frame) -> Result<()> {
        let Some(connection) = self.connections.get(&process) else { return Ok(()) };
        connection.say(frame).map_err(|error| {
            self.alarm.failure().unwrap_or_else(|| {
                Error::new(format!("{} is gone: what it is told does not reach it ({error})", self.name(process)))
            })
        })
    }

    /// Tells all of a failure but one process.
    fn tell_all(&self, failed: &Failed, but: Option<u32>) {
        for (_, connection) in self.connections.iter().filter(|&(&process, _)| Some(process) != but) {
            // Who cannot be reached ends by itself.
            let _ = connection.say(&Frame::Failed(failed.clone()));
        }
    }

    /// A process has failed, as far as this one can see. The alarm comes first, since those that process 0 tells of it close their
    /// connections, which is not to be taken for the failure.
    fn failed(&self, process: u32, failed: Failed) {
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.alarm.raise(&with_help(Error::new(failed.message.clone()), failed.help.as_deref()));
        if self.process == 0 {
            self.tell_all(&failed, Some(process));
        }
        self.arrived.notify_all();
    }

    /// Ends this process from within, if it has come to no end with something.
    fn look_at_itself(&self, limit: Duration) {
        let Some((stuck, what)) = self.alarm.stuck().filter(|(stuck, _)| *stuck > limit + LONGER) else { return };
        let me = self.name(self.process);
        let message = format!("{me}: nothing has gone on for {} s, with {what}", stuck.as_secs());
        let failed = Failed { message, help: Some("`--time-out` sets how long to wait".to_owned()) };
        let _telling = self.telling.lock().unwrap_or_else(PoisonError::into_inner);
        self.alarm.raise(&with_help(Error::new(failed.message.clone()), failed.help.as_deref()));
        self.tell_all(&failed, None);
        self.arrived.notify_all();
    }

    /// A thread: takes what a process says.
    fn listen(&self, process: u32) {
        let Some(connection) = self.connections.get(&process) else { return };
        let mut said_bye = false;
        loop {
            match connection.hear() {
                Ok(Frame::Gather(number, bytes)) => {
                    self.lock().gathered.entry(number).or_default().insert(process, bytes);
                    self.arrived.notify_all();
                }
                Ok(Frame::Give(number, bytes)) => {
                    self.lock().given.insert(number, bytes);
                    self.arrived.notify_all();
                }
                Ok(Frame::Failed(failed)) => {
                    said_bye = true;
                    self.failed(process, failed);
                }
                Ok(Frame::Bye) => said_bye = true,
                Ok(Frame::Beat | Frame::Hello(_) | Frame::Welcome(_)) => {}
                Err(error) => {
                    connection.ended();
                    if !said_bye && !self.leaving.load(Ordering::Acquire) {
                        let why = match error.kind() {
                            std::io::ErrorKind::UnexpectedEof => "its connection has closed".to_owned(),
                            _ => error.to_string(),
                        };
                        let message = format!("{} is gone: {why}", self.name(process));
                        self.failed(process, Failed { message, help: None });
                    }
                    return;
                }
            }
        }
    }

    /// A thread: says that this process is alive, and looks who is not.
    fn beat(&self, limit: Duration) {
        let pause = (limit / 10).min(BEAT);
        let mut last = Instant::now();
        while !self.leaving.load(Ordering::Acquire) {
            thread::sleep(LOOK.min(pause));
            if last.elapsed() < pause {
                continue;
            }
            last = Instant::now();
            if !self.alarm.is_raised() {
                self.look_at_itself(limit);
            }
            for (&process, connection) in &self.connections {
                // What cannot be said is seen by who listens.
                let _ = connection.say(&Frame::Beat);
                let silent = connection.silent_for();
                if silent > limit && !connection.is_closed() && !self.alarm.is_raised() {
                    let message = format!("{} has not been heard of for {} s", self.name(process), limit.as_secs());
                    self.failed(
                        process,
                        Failed { message, help: Some("it hangs, or its host cannot be reached".to_owned()) },
                    );
                }
            }
        }
    }
}

/// This computer's name.
fn host() -> String {
    let read =
        std::fs::read_to_string("/proc/sys/kernel/hostname").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    let name = read.ok().or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    match name.trim() {
        "" => "unknown".to_owned(),
        name => name.to_owned(),
    }
}
