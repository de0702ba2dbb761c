//! For tests whose streams wait for one another.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dualweave::runtime::cuda::flags::Flags;
use dualweave::runtime::cuda::{Event, Stream};

static ALONE: Mutex<()> = Mutex::new(());

/// One such test at a time: streams of several would come into the same hardware queues and hold each other up.
pub fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Releases all flags when the test's thread panics, so that the streams of the others end and the test fails.
pub struct OnPanic(pub Vec<Arc<Flags>>);

impl Drop for OnPanic {
    fn drop(&mut self) {
        // Often, since what others still signal can undo it.
        for _ in 0..if std::thread::panicking() { 1000 } else { 0 } {
            let _ = self.0.iter().try_for_each(|flags| flags.release());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Asserts that a stream waits, and releases flags until it has ended.
pub fn release_until_ended(stream: &Stream, flags: &[&Flags]) {
    let end = Event::new(stream.device(), false).expect("an event");
    end.record(stream).expect("recorded");
    assert!(!end.has_happened().expect("the stream waits"), "the stream waits for what never comes");
    while !end.has_happened().expect("the stream has not failed") {
        flags.iter().for_each(|flags| flags.release().expect("released"));
        std::thread::yield_now();
    }
}
