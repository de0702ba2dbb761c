//! `rewrite`: every program of a layer that is equal to the plain one, by equality saturation.
//!
//! A layer's forward and backward are terms over `seq`, `par` and ops ([`language`]). [`rules`] say which terms are equal,
//! each under its condition; what they may ask about is the [`analysis`], above all what a program reads and writes
//! ([`effects`]). [`saturate`] applies them until nothing is new, and [`forms`] turns what is chosen from the result into
//! ops. It decides nothing by itself: which program is best is a question of loads and order, and others answer it.

pub mod analysis;
pub mod effects;
pub mod forms;
pub mod language;
pub mod rules;
pub mod saturate;

#[cfg(test)]
mod tests;
