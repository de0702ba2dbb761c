//! The passes, in the order in which they run. Each is a function of what the one before it made, the machine and its
//! options; none reads a file, prints, or knows the command line.
//!
//! [`lower`] → [`split`] → [`overlap`] → `pipeline` → `place` → `emit`. [`unit_work`] is an analysis that the first
//! two read.

pub mod lower;
pub mod overlap;
pub mod split;
pub mod unit_work;
