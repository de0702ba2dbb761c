//! Curves through measured points.

/// The value at `x` of straight lines through `points` (ascending in x), from (0, 0) to the first, flat after the last. Zero
/// if there are none.
pub(super) fn at(points: &[(u32, f64)], x: f64) -> f64 {
    let mut before = (0.0, 0.0);
    for &(end, value) in points {
        let end = f64::from(end);
        if x <= end {
            // Two points at one place: the later counts.
            let share = if end == before.0 { 1.0 } else { (x - before.0) / (end - before.0) };
            return before.1 + share * (value - before.1);
        }
        before = (end, value);
    }
    before.1
}
