//! How short timetables can be: the lower bound and the exact search, against trying everything.

#[path = "optimum/small_pipelines.rs"]
mod small_pipelines;

#[path = "optimum/exact.rs"]
mod exact;
#[path = "optimum/grid.rs"]
mod grid;
#[path = "optimum/lower_bound.rs"]
mod lower_bound;
