//! One machine that is fed jobs one after another.

use crate::units::Nanos;

/// When a machine can have done a growing set of jobs: never above the true time, and exact when jobs come in the order of
/// their releases.
///
/// It keeps the latest stretch without a pause. A job that is released within the stretch makes it longer; one released
/// behind it begins a new one; what one released before it adds is not known here, and left out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    start: Nanos,
    end: Nanos,
}

impl Block {
    /// A machine that has nothing to do, from this time on.
    pub fn new(free: Nanos) -> Self {
        Self { start: free, end: free }
    }

    /// Adds a job.
    pub fn add(&mut self, release: Nanos, work: Nanos) {
        if release > self.end {
            (self.start, self.end) = (release, release + work);
        } else if release >= self.start {
            self.end += work;
        }
    }

    /// When all of it is done.
    pub fn end(self) -> Nanos {
        self.end
    }
}
