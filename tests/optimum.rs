//! How short timetables can be: the lower bound, the exact search and the search, against trying everything.

#[path = "optimum/small_pipelines.rs"]
mod small_pipelines;

#[path = "optimum/exact.rs"]
mod exact;
#[path = "optimum/grid.rs"]
mod grid;
#[path = "optimum/lower_bound.rs"]
mod lower_bound;
#[path = "optimum/search.rs"]
mod search;
