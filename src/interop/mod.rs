//! What other tools read and write.

pub mod torch;
