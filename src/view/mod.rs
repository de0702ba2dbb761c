//! What a person looks at: charts of timetables and plans.

pub mod chart;
