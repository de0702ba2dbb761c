//! The first failure that a process hears of, and what it is at itself: where that comes to no end, it is a failure too.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Error;

/// Is raised once; the first failure is the one that is told.
#[derive(Debug, Default)]
pub struct Alarm {
    raised: AtomicBool,
    /// Message and help.
    failure: Mutex<Option<(String, Option<String>)>>,
    work: Mutex<Work>,
}

/// What goes on in this process.
#[derive(Debug, Default)]
struct Work {
    /// By who does it.
    at: BTreeMap<String, String>,
    /// When something was begun or done last.
    last: Option<Instant>,
}

impl Alarm {
    /// Whether something has failed.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::Acquire)
    }

    /// What has failed, if anything has.
    pub fn failure(&self) -> Option<Error> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|(message, help)| with_help(Error::new(message.clone()), help.as_deref()))
    }

    /// Says what somebody in this process is at, until [`Self::done`].
    pub fn at(&self, who: &str, what: String) {
        let mut work = self.work();
        work.at.insert(who.to_owned(), what);
        work.last = Some(Instant::now());
    }

    /// Says that something of what goes on has ended.
    pub fn go_on(&self) {
        self.work().last = Some(Instant::now());
    }

    /// Says that somebody has nothing to do.
    pub fn done(&self, who: &str) {
        let mut work = self.work();
        work.at.remove(who);
        work.last = Some(Instant::now());
    }

    /// For how long nothing has been begun or ended while somebody was at something, and what that is.
    pub fn stuck(&self) -> Option<(Duration, String)> {
        let work = self.work();
        let since = work.last.filter(|_| !work.at.is_empty())?;
        let at: Vec<String> = work.at.iter().map(|(who, what)| format!("{who} at {what}")).collect();
        Some((since.elapsed(), at.join(", ")))
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that something has failed.
    pub fn raise(&self, error: &Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| (error.message().to_owned(), error.help_text().map(str::to_owned)));
        self.raised.store(true, Ordering::Release);
    }
}

/// An error with this help, if there is any.
pub fn with_help(error: Error, help: Option<&str>) -> Error {
    match help {
        Some(help) => error.help(help),
        None => error,
    }
}
