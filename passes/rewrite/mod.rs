//! Equal programs for a chunk, and the choice of one of them.

pub mod extract;
