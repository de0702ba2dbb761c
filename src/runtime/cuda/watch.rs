//! Waiting on the host for what a GPU does, so that nobody waits for ever: a GPU that fails ends all others, and so does one that
//! comes to no end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Event;
use crate::error::{Error, Result};
use crate::runtime::cluster::Alarm;

/// How long the host sleeps between two looks at an event.
const NAP: Duration = Duration::from_micros(50);

/// What the threads of a step share.
pub struct Watch {
    failed: AtomicBool,
    failure: Mutex<Option<Error>>,
    limit: Duration,
    /// Of other processes.
    alarm: Option<Arc<Alarm>>,
}

impl Watch {
    /// `limit`: how long the end of one item may take.
    pub fn new(limit: Duration) -> Self {
        Self { failed: AtomicBool::new(false), failure: Mutex::new(None), limit, alarm: None }
    }

    /// As [`Self::new`]; it also ends when another process fails.
    pub fn with_alarm(limit: Duration, alarm: Option<Arc<Alarm>>) -> Self {
        Self { alarm, ..Self::new(limit) }
    }

    /// The first failure is the one that is told.
    pub fn fail(&self, error: Error) {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// Whether a GPU has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire) || self.alarm.as_ref().is_some_and(|alarm| alarm.is_raised())
    }

    /// The first failure, if there was any: that of another process, which is why those here have failed, before them.
    pub fn failure(self) -> Option<Error> {
        if let Some(failure) = self.alarm.as_ref().and_then(|alarm| alarm.failure()) {
            return Some(failure);
        }
        self.failure.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what a thread of this process is at, so that it can be told if that comes to no end.
    pub fn at(&self, who: &str, what: impl FnOnce() -> String) {
        if let Some(alarm) = &self.alarm {
            alarm.at(who, what());
        }
    }

    /// Says that a thread is done.
    pub fn done(&self, who: &str) {
        if let Some(alarm) = &self.alarm {
            alarm.done(who);
        }
    }

    /// Waits until something is so that another thread brings about.
    ///
    /// # Errors
    /// If another GPU has failed, or the time is over.
    pub fn until(&self, is_so: impl Fn() -> bool) -> Result<()> {
        let start = Instant::now();
        while !is_so() {
            if self.has_failed() {
                return Err(Error::new("another GPU has failed"));
            }
            if start.elapsed() > self.limit {
                return Err(Error::new(format!(
                    "what it waits for has not been reached after {} s",
                    self.limit.as_secs()
                ))
                .help("a rank that it waits for hangs or has died; `--time-out` sets how long to wait"));
            }
            std::thread::sleep(NAP);
        }
        Ok(())
    }

    /// Waits until an event has happened. `what`: whose it is, for the message.
    ///
    /// # Errors
    /// If something before it has failed, another GPU has, or the time is over.
    pub fn wait(&self, event: &Event, what: impl Fn() -> String) -> Result<()> {
        let start = Instant::now();
        while !event.has_happened().map_err(|error| Error::new(format!("{}: {error}", what())))? {
            if self.has_failed() {
                return Err(Error::new("another GPU has failed"));
            }
            if start.elapsed() > self.limit {
                return Err(Error::new(format!("{} has not ended after {} s", what(), self.limit.as_secs()))
                    .help("a rank that it waits for hangs or has died; `--time-out` sets how long to wait"));
            }
            std::thread::sleep(NAP);
        }
        if let Some(alarm) = &self.alarm {
            alarm.go_on();
        }
        Ok(())
    }
}
