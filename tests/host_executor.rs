//! The host runtime runs plans: it agrees with the reference trainer, says what is wrong with a plan, and goes on from checkpoints.

#[path = "host_executor/agreement.rs"]
mod agreement;
#[path = "host_executor/cases.rs"]
mod cases;
#[path = "host_executor/checkpoints.rs"]
mod checkpoints;
#[path = "host_executor/faults.rs"]
mod faults;
#[path = "common/plan_edit.rs"]
#[allow(dead_code, reason = "other tests change more")]
mod plan_edit;
#[path = "host_runtime/shapes.rs"]
#[allow(dead_code, reason = "other tests have more kinds of models")]
mod shapes;
