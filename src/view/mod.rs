//! What people and other tools see of a plan, and of a trace. Everything here turns data into text; nothing decides anything.

pub mod breakdown;
pub mod chart;
pub mod difference;
pub mod figure;
pub(crate) mod numbers;
pub mod pair;
pub(crate) mod palette;
pub mod perfetto;
pub mod plan_text;
pub mod report;
pub mod simulation;
pub(crate) mod table;
pub(crate) mod units;
