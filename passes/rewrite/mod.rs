//! `rewrite`: every program of a layer that is equal to the plain one, by equality saturation, and which of them to schedule.
//!
//! A layer's forward and backward are terms over `seq`, `par` and ops ([`language`]). [`rules`] say which terms are equal,
//! each under its condition; what they may ask about is the [`analysis`], above all what a program reads and writes
//! ([`effects`]). [`saturate`] applies them until nothing is new, [`extract`] chooses from the result by what engines have to
//! do, [`forms`] turns what is chosen into ops, and [`choose`] looks for the programs of a job's layer that are worth scheduling. In which order ops
//! run is a question for `overlap`.

pub mod analysis;
pub mod choose;
mod costs;
pub mod effects;
pub mod extract;
pub mod forms;
pub mod language;
pub mod rules;
pub mod saturate;

#[cfg(test)]
mod tests;

use crate::job::Job;

/// In a job's list of rules that must not be used: all of them.
pub const ALL: &str = "all";

/// Whether the job allows no rule.
pub fn none_allowed(job: &Job) -> bool {
    job.training.without_rewrites.iter().any(|rule| rule == ALL)
}

/// Saturation as a job allows it.
pub fn options(job: &Job) -> saturate::Options {
    let off = job.training.without_rewrites.iter().cloned().collect();
    saturate::Options { off, ..saturate::Options::default() }
}
