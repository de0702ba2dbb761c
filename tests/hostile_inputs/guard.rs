//! What a case may not do: panic, take more than a gigabyte, or go on for ever. Whatever happens, the input is printed.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use dualweave::Error;

use crate::dice::Dice;

/// Most bytes that this program may hold at any moment, all cases that run at the same time together.
const MOST_BYTES: usize = 1 << 30;

/// A case that takes longer goes on for ever: all of them take milliseconds.
const FOR_EVER: Duration = Duration::from_secs(20);

/// Most bytes of an input that are printed.
const SHOWN: usize = 20_000;

/// The system's allocator, which has no more than [`MOST_BYTES`].
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call is the system allocator's, but for those that are refused with null, as the contract has it.
#[expect(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Counts bytes that are about to be taken. There is no unwinding out of an allocator: if they are too many, all ends here.
fn count(bytes: usize) {
    let before = HELD.fetch_add(bytes, Ordering::Relaxed);
    if before.saturating_add(bytes) > MOST_BYTES {
        // To say so takes memory too.
        HELD.store(0, Ordering::Relaxed);
        let running = RUNNING.try_lock().map(|running| running.clone()).unwrap_or_default();
        for case in running {
            complain(&case, &format!("asks for {bytes} bytes beside {before}"));
        }
        std::process::abort();
    }
}

/// A case that is running.
#[derive(Clone)]
struct Case {
    kind: &'static str,
    number: u32,
    input: Arc<[u8]>,
}

static RUNNING: Mutex<Vec<Case>> = Mutex::new(Vec::new());

/// Says what is wrong with a case, past the capture of the test harness.
fn complain(case: &Case, what: &str) {
    let shown = String::from_utf8_lossy(&case.input[..case.input.len().min(SHOWN)]);
    // Nothing is left to do if even stderr is closed.
    let _ = writeln!(std::io::stderr(), "{} {}: {what}:\n{shown}\n", case.kind, case.number);
}

/// Takes the case off the list, however it ends.
struct Running(Case);

impl Running {
    fn new(case: Case) -> Self {
        RUNNING.lock().unwrap_or_else(PoisonError::into_inner).push(case.clone());
        Self(case)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        running.retain(|case| (case.kind, case.number) != (self.0.kind, self.0.number));
    }
}

/// How far an input came.
pub enum Answer {
    /// The reader refused it.
    Refused(Error),
    /// It was read, and what came next refused what it says.
    Unusable(Error),
    /// It was used.
    Used,
}

/// What came of all cases of a kind.
#[derive(Default)]
pub struct Tally {
    pub refused: u32,
    pub unusable: u32,
    pub used: u32,
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} refused, {} read but unusable, {} used", self.refused, self.unusable, self.used)
    }
}

/// Makes so many inputs of a kind and answers each.
pub fn try_all(
    kind: &'static str,
    cases: u32,
    make: impl Fn(&mut Dice) -> Vec<u8>,
    answer: impl Fn(&[u8], &mut Dice) -> Answer,
) -> Tally {
    let watched = Watch::default();
    let tally = thread::scope(|scope| {
        scope.spawn(|| watched.watch(kind));
        let mut tally = Tally::default();
        for number in 0..cases {
            // Each case can be made without those before it.
            let mut dice = Dice(u64::from(number) << 32);
            let input: Arc<[u8]> = make(&mut dice).into();
            let case = Running::new(Case { kind, number, input: Arc::clone(&input) });
            let answered = catch_unwind(AssertUnwindSafe(|| {
                let answer = answer(&input, &mut dice);
                if let Answer::Refused(error) | Answer::Unusable(error) = &answer {
                    check_error(error);
                }
                answer
            }));
            match answered {
                Ok(Answer::Refused(error)) => {
                    show(error, &case);
                    tally.refused += 1;
                }
                Ok(Answer::Unusable(error)) => {
                    show(error, &case);
                    tally.unusable += 1;
                }
                Ok(Answer::Used) => tally.used += 1,
                Err(_) => {
                    complain(&case.0, "panics");
                    watched.end();
                    panic!("{kind} {number} panics");
                }
            }
            watched.next(number);
        }
        watched.end();
        tally
    });
    // Past the capture: how much was tried is worth knowing also where all went well.
    let _ = writeln!(std::io::stderr(), "{kind}: {cases} inputs: {tally}");
    tally
}

/// An error is a sentence, and not one about the program itself.
fn check_error(error: &Error) {
    let message = error.message();
    assert!(message.split_whitespace().count() > 1 && !message.contains("panicked"), "{error:?}");
}

/// Shows an error as the command line does: that must do, whatever is in the file that it points into.
fn show(error: Error, case: &Running) {
    let shown = catch_unwind(AssertUnwindSafe(|| format!("{:?}", miette::Report::new(error))));
    if shown.map_or(true, |text| text.is_empty()) {
        complain(&case.0, "cannot be shown");
        std::process::exit(101);
    }
}

/// Sees to it that cases end.
#[derive(Default)]
struct Watch {
    /// How many have ended, and whether all have.
    state: Mutex<(u32, bool)>,
    changed: Condvar,
}

impl Watch {
    fn next(&self, number: u32) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0 = number + 1;
    }

    fn end(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).1 = true;
        self.changed.notify_all();
    }

    /// Ends the program if a case does not end.
    fn watch(&self, kind: &str) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = u32::MAX;
        while !state.1 {
            if state.0 == seen {
                let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
                for case in running.iter().filter(|case| case.kind == kind) {
                    complain(case, "does not end");
                }
                std::process::abort();
            }
            seen = state.0;
            state = match self.changed.wait_timeout(state, FOR_EVER) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }
}
