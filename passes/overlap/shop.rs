//! The shortest order of ops on two engines that slow each other: branch and bound.
//!
//! A node has fixed the order of some pairs of an engine's ops; the others are narrowed down by heads and tails (Carlier and Pinson
//! 1989): where i before j would take longer than the best known order, j comes before i. Heads and tails are taken four times, with
//! computations, exchanges, neither or both as long as beside the other engine all the time.
//!
//! What a path can save for having nothing beside it is limited. Let a be the least share of its speed that a computation loses
//! beside an exchange, b that of an exchange beside a computation, C and X what computations and exchanges take alone. If everything
//! takes T, both engines run together for at least o = (C + X - T) / (1 - a - b). So computations have nothing beside them for at
//! most u = T - X - b o, exchanges for at most v = T - C - a o, and a path is at least as long as with all its ops slowed, less
//! u a / (1 - a) for its computations and v b / (1 - b) for its exchanges.

use crate::ir::Stream;
use crate::units::Nanos;

/// Most ops that an order is searched for: sets of them are bits.
pub const MOST_OPS: usize = 128;

/// Ops with what they need of each other. Named by their place.
#[derive(Clone, Debug, PartialEq)]
pub struct Shop {
    /// Of each op its engine.
    pub engines: Vec<Stream>,
    /// How long it takes with nothing beside it.
    pub durations: Vec<Nanos>,
    /// The ops whose end it waits for.
    pub needs: Vec<Vec<usize>>,
    /// Pairs of one engine's ops that start in this order, whether or not one needs the other.
    pub in_order: Vec<(usize, usize)>,
    /// The least shares of their speed that computations and exchanges lose beside each other.
    pub lost: [f64; 2],
}

/// What a search found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// How long all takes.
    pub span: Nanos,
    /// The ops in launch order.
    pub order: Vec<usize>,
    /// Nothing takes less than `span`, but for rounding: everything was looked at, or the start met the bound.
    pub complete: bool,
    /// Partial orders that were looked at.
    pub nodes: u64,
}

/// The shortest order within a number of nodes, from a first one. `time` says how long an order takes, not less than the shop's
/// durations and losses allow; it may be off by `rounding`.
pub fn shortest(
    shop: &Shop,
    start: (Nanos, Vec<usize>),
    rounding: Nanos,
    nodes: u64,
    time: impl FnMut(&[usize]) -> Nanos,
) -> Ordered {
    let (span, order) = start;
    let best = Ordered { span, order, complete: shop.engines.len() <= MOST_OPS, nodes: 0 };
    if !best.complete {
        return best;
    }
    let variants = [[false, false], [true, false], [false, true], [true, true]].map(|sides| Variant::new(shop, sides));
    let mut search = Search { shop, variants, best, left: nodes, rounding, time };
    search.descend(shop.order());
    Ordered { nodes: nodes - search.left, ..search.best }
}

impl Shop {
    /// What must come before what, by needs alone.
    fn order(&self) -> Order {
        let count = self.engines.len();
        let mut order = Order { before: vec![0; count], after: vec![0; count] };
        for (to, needs) in self.needs.iter().enumerate() {
            needs.iter().for_each(|&from| order.add(from, to));
        }
        self.in_order.iter().for_each(|&(from, to)| order.add(from, to));
        order
    }

    /// The most that computations, and exchanges, on a path of this length can save for having nothing beside them; rounded up.
    fn saved(&self, span: Nanos) -> [u64; 2] {
        let load = |engine: Stream| -> f64 {
            let ops = self.engines.iter().zip(&self.durations).filter(|(other, _)| **other == engine);
            ops.map(|(_, duration)| duration.as_f64()).sum()
        };
        saved([load(Stream::Compute), load(Stream::Comm)], self.lost, span.as_f64())
    }
}

/// See the module: `[u a / (1 - a), v b / (1 - b)]` for loads `[C, X]`, shares lost `[a, b]` and a time, in ns, rounded up.
pub fn saved(loads: [f64; 2], lost: [f64; 2], time: f64) -> [u64; 2] {
    let ([compute, comm], [a, b]) = (loads, lost);
    if a + b >= 1.0 {
        return [u64::MAX / 4; 2];
    }
    let together = ((compute + comm - time) / (1.0 - a - b)).max(0.0);
    let alone = [time - comm - b * together, time - compute - a * together];
    [(alone[0], a), (alone[1], b)].map(|(alone, share)| (alone.max(0.0) * share / (1.0 - share)).ceil() as u64 + 1)
}

/// What comes before what, as far as it is fixed: sets of ops as bits, closed under transitivity.
#[derive(Clone)]
struct Order {
    before: Vec<u128>,
    after: Vec<u128>,
}

impl Order {
    fn has(&self, from: usize, to: usize) -> bool {
        self.before[to] >> from & 1 == 1
    }

    fn add(&mut self, from: usize, to: usize) {
        if self.has(from, to) {
            return;
        }
        let (sources, targets) = (self.before[from] | 1 << from, self.after[to] | 1 << to);
        members(targets).for_each(|op| self.before[op] |= sources);
        members(sources).for_each(|op| self.after[op] |= targets);
    }

    /// All ops, each behind those before it.
    fn sorted(&self) -> Vec<usize> {
        let mut ops: Vec<usize> = (0..self.before.len()).collect();
        ops.sort_by_key(|&op| (self.before[op].count_ones(), op));
        ops
    }
}

/// The ops of a set, ascending.
fn members(mut set: u128) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let first = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(first)
    })
}

/// Durations with some sides stretched, in ns, rounded down.
struct Variant {
    sides: [bool; 2],
    durations: Vec<u64>,
}

impl Variant {
    fn new(shop: &Shop, sides: [bool; 2]) -> Self {
        let stretched = |(duration, engine): (&Nanos, &Stream)| match sides[*engine as usize] {
            true => (duration.as_f64() / (1.0 - shop.lost[*engine as usize])) as u64,
            false => duration.0,
        };
        Self { sides, durations: shop.durations.iter().zip(&shop.engines).map(stretched).collect() }
    }
}

/// Least times from the start of everything to the start of each op, and from its end to the end of everything.
struct Ends {
    heads: Vec<u64>,
    tails: Vec<u64>,
}

struct Search<'a, Time> {
    shop: &'a Shop,
    variants: [Variant; 4],
    best: Ordered,
    left: u64,
    rounding: Nanos,
    time: Time,
}

impl<Time: FnMut(&[usize]) -> Nanos> Search<'_, Time> {
    fn descend(&mut self, mut order: Order) {
        if self.left == 0 {
            self.best.complete = false;
            return;
        }
        self.left -= 1;
        let Some((ends, open)) = self.narrow(&mut order) else { return };
        self.try_order(&order, &ends);
        // The pair whose better order costs most; that order first.
        let durations = &self.variants[3].durations;
        let length = |i: usize, j: usize| ends.heads[i] + durations[i] + durations[j] + ends.tails[j];
        let worst = open.into_iter().max_by_key(|&(i, j)| {
            let both = (length(i, j), length(j, i));
            (both.0.min(both.1), both.0.max(both.1), std::cmp::Reverse((i, j)))
        });
        let Some((i, j)) = worst else { return };
        let branches = if length(i, j) <= length(j, i) { [(i, j), (j, i)] } else { [(j, i), (i, j)] };
        for (from, to) in branches {
            let mut next = order.clone();
            next.add(from, to);
            self.descend(next);
        }
    }

    /// Fixes every pair of which only one order can be shorter than the best known. The ends with everything stretched, and the
    /// pairs that are left; `None` if nothing can be shorter.
    fn narrow(&self, order: &mut Order) -> Option<(Ends, Vec<(usize, usize)>)> {
        let target = self.best.span.saturating_sub(self.rounding + Nanos(1));
        let saved = self.shop.saved(target);
        loop {
            let sorted = order.sorted();
            let mut limits = Vec::with_capacity(self.variants.len());
            for variant in &self.variants {
                let saved = variant.sides.iter().zip(saved).filter(|(stretched, _)| **stretched);
                let limit = saved.map(|(_, saved)| saved).fold(target.0, u64::saturating_add);
                let ends = self.ends(order, &sorted, &variant.durations);
                let fits = |op: usize| ends.heads[op] + variant.durations[op] + ends.tails[op] <= limit;
                if !sorted.iter().copied().all(fits) {
                    return None;
                }
                limits.push((limit, ends, &variant.durations));
            }
            let fits = |i: usize, j: usize| {
                limits.iter().all(|(limit, ends, d)| ends.heads[i] + d[i] + d[j] + ends.tails[j] <= *limit)
            };
            let mut open = Vec::new();
            let mut fixed = false;
            for j in 0..sorted.len() {
                for i in (0..j).filter(|&i| self.shop.engines[i] == self.shop.engines[j]) {
                    if order.has(i, j) || order.has(j, i) {
                        continue;
                    }
                    match (fits(i, j), fits(j, i)) {
                        (true, true) => {
                            open.push((i, j));
                            continue;
                        }
                        (true, false) => order.add(i, j),
                        (false, true) => order.add(j, i),
                        (false, false) => return None,
                    }
                    fixed = true;
                }
            }
            if !fixed {
                return limits.pop().map(|(_, ends, _)| (ends, open));
            }
        }
    }

    fn ends(&self, order: &Order, sorted: &[usize], durations: &[u64]) -> Ends {
        let count = sorted.len();
        let mut ends = Ends { heads: vec![0; count], tails: vec![0; count] };
        for &op in sorted {
            ends.heads[op] = self.after_all(order.before[op], &ends.heads, durations);
        }
        for &op in sorted.iter().rev() {
            ends.tails[op] = self.after_all(order.after[op], &ends.tails, durations);
        }
        ends
    }

    /// The least time at which a set of ops can all have ended, each not before its head, those of one engine one after the other.
    fn after_all(&self, set: u128, heads: &[u64], durations: &[u64]) -> u64 {
        let mut latest = 0;
        for engine in [Stream::Compute, Stream::Comm] {
            let mut ops: Vec<usize> = members(set).filter(|&op| self.shop.engines[op] == engine).collect();
            ops.sort_unstable_by_key(|&op| heads[op]);
            let mut now = 0;
            for op in ops {
                now = heads[op].max(now) + durations[op];
            }
            latest = latest.max(now);
        }
        latest
    }

    /// Times the ops in the order of their heads.
    fn try_order(&mut self, order: &Order, ends: &Ends) {
        let mut sorted: Vec<usize> = (0..self.shop.engines.len()).collect();
        sorted
            .sort_by_key(|&op| (ends.heads[op], order.before[op].count_ones(), std::cmp::Reverse(ends.tails[op]), op));
        let span = (self.time)(&sorted);
        if span < self.best.span {
            self.best.span = span;
            self.best.order = sorted;
        }
    }
}
