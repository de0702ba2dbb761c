//! Files that nobody meant to write: more than a hundred thousand of them, made from good ones by edits that know nothing of
//! the format and by edits that know a little. Whatever a file says, it is answered: with an error that is a sentence, or by
//! what the commands would go on to do with it. No panic, no overflow of the stack, at most a gigabyte of memory, and no
//! endless loop.

#[path = "common/dice.rs"]
mod dice;
#[path = "hostile_inputs/edits.rs"]
mod edits;
#[path = "hostile_inputs/guard.rs"]
mod guard;
#[path = "common/profiles.rs"]
mod made_profiles;
#[path = "common/measured_trace.rs"]
mod measured_trace;
#[path = "common/plan_readers.rs"]
mod plan_readers;

#[path = "hostile_inputs/checkpoints.rs"]
mod checkpoints;
#[path = "hostile_inputs/jobs.rs"]
mod jobs;
#[path = "hostile_inputs/measured.rs"]
mod measured;
#[path = "hostile_inputs/plans.rs"]
mod plans;
#[path = "hostile_inputs/profiles.rs"]
mod profiles;
#[path = "hostile_inputs/tables.rs"]
mod tables;
#[path = "hostile_inputs/traces.rs"]
mod traces;
