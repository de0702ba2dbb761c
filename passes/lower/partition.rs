//! Cutting a list of costs into contiguous parts.

/// Cuts `costs` into `parts` contiguous, non-empty parts; returns the end of each. The largest sum is as small as it can
/// be, and among such cuts the sum of squares is; ties go to the earlier cut.
///
/// `parts` must be between 1 and the number of costs. O(n²) at worst, about n²/parts in practice.
pub fn partition(costs: &[u64], parts: usize) -> Vec<usize> {
    let count = costs.len();
    assert!((1..=count).contains(&parts), "{count} costs cannot make {parts} parts");
    let mut before = vec![0u128];
    for &cost in costs {
        before.push(before[before.len() - 1] + u128::from(cost));
    }
    let limit = smallest_largest(costs, parts, before[count]);

    // best[part][end]: least sum of squares of the first `part + 1` parts that end at `end`, all within the limit.
    const NONE: u128 = u128::MAX;
    let mut best: Vec<u128> = (0..=count).map(|end| if end == 0 { 0 } else { NONE }).collect();
    let mut choices: Vec<Vec<u32>> = Vec::with_capacity(parts);
    for _ in 0..parts {
        let mut next = vec![NONE; count + 1];
        let mut choice = vec![0u32; count + 1];
        for end in 1..=count {
            // From short to long parts; `<=` lets the longer part, that is the earlier cut, win ties.
            for start in (0..end).rev() {
                let sum = before[end] - before[start];
                if sum > limit {
                    break;
                }
                if best[start] == NONE {
                    continue;
                }
                // Costs are nanoseconds below 2^63, but squares of sums may pass 2^128: saturate.
                let squares = best[start].saturating_add(sum.saturating_mul(sum)).min(NONE - 1);
                if squares <= next[end] {
                    next[end] = squares;
                    choice[end] = start as u32;
                }
            }
        }
        best = next;
        choices.push(choice);
    }

    let mut ends = vec![count];
    for choice in choices.iter().skip(1).rev() {
        let end = ends[ends.len() - 1];
        ends.push(choice[end] as usize);
    }
    ends.reverse();
    ends
}

/// The smallest possible largest sum: bisection over what a greedy cut can keep.
fn smallest_largest(costs: &[u64], parts: usize, total: u128) -> u128 {
    let (mut low, mut high) = (costs.iter().copied().max().map_or(0, u128::from), total);
    while low < high {
        let middle = low + (high - low) / 2;
        if parts_needed(costs, middle) <= parts { high = middle } else { low = middle + 1 }
    }
    low
}

/// Parts that a greedy cut needs when none may exceed `limit`. Fewer are never possible; more always are, by cutting on.
fn parts_needed(costs: &[u64], limit: u128) -> usize {
    let (mut parts, mut sum) = (1, 0u128);
    for &cost in costs {
        sum += u128::from(cost);
        if sum > limit {
            parts += 1;
            sum = u128::from(cost);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sums(costs: &[u64], ends: &[usize]) -> Vec<u64> {
        let starts = std::iter::once(0).chain(ends.iter().copied());
        starts.zip(ends).map(|(start, &end)| costs[start..end].iter().sum()).collect()
    }

    /// All cuts, by recursion: (largest, squares) of the best.
    fn exhaustive(costs: &[u64], parts: usize) -> (u64, u64) {
        if parts == 1 {
            let sum: u64 = costs.iter().sum();
            return (sum, sum * sum);
        }
        let mut all = Vec::new();
        for cut in 1..=costs.len() - (parts - 1) {
            let sum: u64 = costs[..cut].iter().sum();
            collect(&costs[cut..], parts - 1, sum, sum * sum, &mut all);
        }
        all.into_iter().min().expect("there is a cut")
    }

    fn collect(costs: &[u64], parts: usize, largest: u64, squares: u64, all: &mut Vec<(u64, u64)>) {
        if parts == 1 {
            let sum: u64 = costs.iter().sum();
            all.push((largest.max(sum), squares + sum * sum));
            return;
        }
        for cut in 1..=costs.len() - (parts - 1) {
            let sum: u64 = costs[..cut].iter().sum();
            collect(&costs[cut..], parts - 1, largest.max(sum), squares + sum * sum, all);
        }
    }

    proptest::proptest! {
        /// No cut is below the mean or the largest cost; a greedy one that closes each part behind the mean is at most
        /// the largest cost above it.
        #[test]
        fn is_between_the_bounds(costs in proptest::collection::vec(1u64..1_000_000_000, 1..300), parts in 1usize..80) {
            let parts = parts.min(costs.len());
            let sums = sums(&costs, &partition(&costs, parts));
            let (found, most) = (*sums.iter().max().unwrap(), *costs.iter().max().unwrap());
            let mean = costs.iter().sum::<u64>().div_ceil(parts as u64);
            proptest::prop_assert!(mean.max(most) <= found && found <= mean + most, "{} {} {}", mean, most, found);
        }

        #[test]
        fn equals_exhaustive_search(costs in proptest::collection::vec(0u64..20, 1..10), parts in 1usize..5) {
            let parts = parts.min(costs.len());
            let ends = partition(&costs, parts);
            let sums = sums(&costs, &ends);
            proptest::prop_assert_eq!(ends.len(), parts);
            proptest::prop_assert!(ends.windows(2).all(|pair| pair[0] < pair[1]) && ends[0] > 0);
            let found = (*sums.iter().max().unwrap(), sums.iter().map(|sum| sum * sum).sum::<u64>());
            proptest::prop_assert_eq!(found, exhaustive(&costs, parts));
        }
    }
}
