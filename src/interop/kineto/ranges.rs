//! Ranges of time that lie within each other, as calls do.

/// For each range, the one around it; for each moment that is asked for, the innermost range around it.
pub(super) struct Nest {
    /// By range.
    pub parents: Vec<Option<u32>>,
    /// By moment, as they were given.
    pub innermost: Vec<Option<u32>>,
    /// The ranges by lane and start; each behind those around it.
    pub order: Vec<u32>,
}

/// A range of one lane (thread or stream), from its start to before its end.
#[derive(Clone, Copy)]
pub(super) struct Span<L> {
    pub lane: L,
    pub start: i64,
    pub end: i64,
}

impl Nest {
    /// Of ranges, and moments `(lane, time)`. Ranges that cross are said to be within each other as long as both last; of ranges that
    /// begin at the same time the longer is outside, and of equal ones the first.
    pub fn new<L: Copy + Ord>(ranges: &[Span<L>], moments: &[(L, i64)]) -> Self {
        let mut order: Vec<u32> = (0..ranges.len() as u32).collect();
        order.sort_by_key(|&at| {
            let range = &ranges[at as usize];
            (range.lane, range.start, std::cmp::Reverse(range.end), at)
        });
        let mut asked: Vec<u32> = (0..moments.len() as u32).collect();
        asked.sort_by_key(|&at| (moments[at as usize], at));

        let (mut parents, mut innermost) = (vec![None; ranges.len()], vec![None; moments.len()]);
        let mut open: Vec<u32> = Vec::new();
        let mut next = order.iter().copied().peekable();
        let close = |open: &mut Vec<u32>, lane: L, time: i64| {
            while open.last().is_some_and(|&last| {
                let last = &ranges[last as usize];
                last.lane != lane || last.end <= time
            }) {
                open.pop();
            }
        };
        for moment in asked {
            let (lane, time) = moments[moment as usize];
            while let Some(range) = next.next_if(|&range| {
                let range = &ranges[range as usize];
                (range.lane, range.start) <= (lane, time)
            }) {
                close(&mut open, ranges[range as usize].lane, ranges[range as usize].start);
                parents[range as usize] = open.last().copied();
                open.push(range);
            }
            close(&mut open, lane, time);
            innermost[moment as usize] = open.last().copied();
        }
        for range in next {
            close(&mut open, ranges[range as usize].lane, ranges[range as usize].start);
            parents[range as usize] = open.last().copied();
            open.push(range);
        }
        Self { parents, innermost, order }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against looking at every range for every moment.
    #[test]
    fn innermost_ranges_are_found() {
        // (lane, start, end), each within those before it of the same lane, or behind them.
        let ranges = [(1, 0, 100), (1, 10, 40), (1, 10, 20), (1, 60, 61), (0, 5, 50), (1, 61, 99), (2, 7, 7)];
        let spans = ranges.map(|(lane, start, end)| Span { lane, start, end });
        let moments: Vec<(u8, i64)> = (0..3).flat_map(|lane| (-1..102).map(move |time| (lane, time))).collect();
        let nest = Nest::new(&spans, &moments);
        let around = |lane, time| {
            let within = (0..ranges.len()).filter(|&at| {
                let (on, start, end) = ranges[at];
                on == lane && start <= time && time < end
            });
            within.min_by_key(|&at| ranges[at].2 - ranges[at].1).map(|at| at as u32)
        };
        for (&(lane, time), &found) in moments.iter().zip(&nest.innermost) {
            assert_eq!(found, around(lane, time), "{lane} {time}");
        }
        assert_eq!(nest.parents, [None, Some(0), Some(1), Some(0), None, Some(0), None]);
    }
}
