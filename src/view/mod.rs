//! What people and other tools see of a plan, and of a trace. Everything here turns data into text; nothing decides anything.

pub mod breakdown;
pub mod chart;
pub mod difference;
pub(crate) mod numbers;
pub mod pair;
pub mod perfetto;
pub mod plan_text;
pub mod simulation;
pub(crate) mod table;
pub(crate) mod units;
