//! The passes, in the order in which they run. Each is a function of what the one before it made, the machine and its
//! options; none reads a file, prints, or knows the command line.

pub mod pipeline;
