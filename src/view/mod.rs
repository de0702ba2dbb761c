//! What people and other tools see of a plan. Everything here turns data into text; nothing decides anything.

mod numbers;
pub mod perfetto;
pub mod simulation;
