//! What other tools read and write; and what was measured.

pub mod kineto;
pub mod measured;
pub mod torch;
