//! What other tools read and write.

pub mod kineto;
pub mod torch;
