//! In what order a rank can run its forwards and backwards, if its timetable is to end in time: by dynamic programming.
//!
//! A state is how many forwards and how many backwards a rank has started. Whatever its order is, the `i`-th forward that it starts
//! starts no earlier than the `i`-th smallest of the heads of its forwards, and is followed by no less than the tail of as many as
//! come behind it; so is every backward. The next action is a forward, an I, a backward or a pair, each as short as any of the rank's.
//! W is cut as fine as one likes: it runs where the rank would be idle, where memory is full, and at the end.
//!
//! What no order of a rank can do in time makes heads and tails longer. That tells other ranks when they must run what this one
//! waits for: alone, where a pair would take too long.

use super::heads::Heads;
use super::lines::Lines;
use super::tails::Tails;
use crate::ir::Problem;
use crate::units::Nanos;

/// Per line, step and micro-batch: the least start and end of its action, or counted from the end of the timetable.
#[derive(Clone)]
pub(in crate::passes::pipeline) struct Floors(Vec<Vec<(Nanos, Nanos)>>);

impl Floors {
    /// Nothing is known.
    pub fn none(lines: &Lines) -> Self {
        Self(lines.lines.iter().map(|line| vec![(Nanos::ZERO, Nanos::ZERO); line.steps.len() * line.count]).collect())
    }

    /// The least start and end of the action that has a step.
    pub fn of(&self, lines: &Lines, at: usize, step: usize, k: usize) -> (Nanos, Nanos) {
        self.0[at][step * lines.lines[at].count + k]
    }

    /// Whether one of the two becomes larger.
    fn raise(&mut self, lines: &Lines, (at, step, k): (usize, usize, usize), (start, end): (Nanos, Nanos)) -> bool {
        let floor = &mut self.0[at][step * lines.lines[at].count + k];
        let raised = start > floor.0 || end > floor.1;
        *floor = (floor.0.max(start), floor.1.max(end));
        raised
    }
}

/// States of all ranks together, at most. Ranks that have more than their share are not looked at.
const STATES: usize = 1 << 19;

/// What an answer hangs on, for each rank: it is not asked for again while that stays the same.
#[derive(Default)]
pub(super) struct Asked(Vec<Vec<Vec<i64>>>);

/// Raises what is known of all heads and tails by the orders that `rank` can have. `None`: it can have none that ends `within`.
/// Whether anything was raised.
pub(super) fn narrow(
    problem: &Problem,
    lines: &Lines,
    (heads, tails): (&Heads, &Tails),
    (from_start, from_end): (&mut Floors, &mut Floors),
    asked: &mut Asked,
    rank: usize,
    within: Nanos,
) -> Option<bool> {
    let Some(turns) = Turns::new(problem, lines, heads, tails, rank, within) else { return Some(false) };
    asked.0.resize_with(lines.on_rank.len(), Vec::new);
    let question = turns.groups.iter().flat_map(|group| group.heads.iter().chain(&group.tails)).cloned().collect();
    if asked.0[rank] == question {
        return Some(false);
    }
    asked.0[rank] = question;
    let windows = turns.windows()?;
    let mut raised = false;
    for (group, windows) in turns.groups.iter().zip(&windows) {
        for &(at, stage) in &group.classes {
            let line = &lines.lines[at];
            for (step, windows) in [(stage, &windows[0]), (line.input(stage), &windows[1])] {
                let own = &line.steps[step];
                // Of the group, what comes before and behind it of the same micro-batch.
                let is_like = |other: usize| {
                    let in_group = group.classes.contains(&(at, line.steps[other].stage));
                    in_group && (other < line.stages()) == (step < line.stages())
                };
                let like = |steps: &[usize]| steps.iter().filter(|&&other| is_like(other)).count();
                let (before, behind) = (like(&own.before), like(&own.behind));
                for k in 0..line.count {
                    let head = windows.heads[k + before * (k + 1)];
                    raised |= from_start.raise(lines, (at, step, k), head);
                    let tail = windows.tails[k + behind * (k + 1)];
                    raised |= from_end.raise(lines, (at, step, k), tail);
                }
            }
        }
    }
    Some(raised)
}

/// The chunks of a rank, line and stage.
type Class = (usize, usize);

/// How much a rank's memory has room for.
struct Room {
    limit: u64,
    /// The least that waits for W.
    for_weights: u64,
}

impl Room {
    fn new(problem: &Problem, lines: &Lines, rank: usize) -> Self {
        let Some(memory) = &problem.memory else { return Self { limit: u64::MAX, for_weights: 0 } };
        let held = lines.on_rank[rank].iter().map(|&(_, stage)| &memory.stages[stage]);
        let for_weights = held.map(|held| held.for_weights.min(held.activation)).min().unwrap_or(0);
        Self { limit: memory.limits[rank], for_weights }
    }

    /// The least that a chunk of some classes holds from F to I.
    fn activation(classes: &[Class], problem: &Problem) -> u64 {
        let Some(memory) = &problem.memory else { return 0 };
        classes.iter().map(|&(_, stage)| memory.stages[stage].activation).min().unwrap_or(0)
    }

    /// Chunks of these classes that are between F and I, at most.
    fn most(&self, classes: &[Class], problem: &Problem) -> usize {
        let chunks = self.limit.checked_div(Self::activation(classes, problem));
        chunks.map_or(usize::MAX, |chunks| usize::try_from(chunks).unwrap_or(usize::MAX))
    }

    /// So many W may wait where chunks between F and I hold so much; `None`: they cannot.
    fn waiting(&self, held: u128) -> Option<u64> {
        let rest = u128::from(self.limit).checked_sub(held)?;
        let waiting = rest.checked_div(u128::from(self.for_weights));
        Some(waiting.map_or(u64::MAX, |waiting| u64::try_from(waiting).unwrap_or(u64::MAX)))
    }
}

/// What can be reached, best first: time, and the W that waits then, or could. The less of either the better.
#[derive(Clone, Copy, Default)]
struct Front {
    count: usize,
    points: [(i64, i64); FRONT],
}

/// So many points are kept; of more, neighbours are taken together, with the better part of each.
const FRONT: usize = 6;

impl Front {
    fn points(&self) -> &[(i64, i64)] {
        &self.points[..self.count]
    }

    /// Adds a point. Times ascend, and what waits descends, also if the rank runs it at once.
    fn add(&mut self, point: (i64, i64)) {
        let better = |a: (i64, i64), b: (i64, i64)| a.0 <= b.0 && a.0 + a.1 <= b.0 + b.1;
        if self.points().iter().any(|&other| better(other, point)) {
            return;
        }
        let mut all = [(0, 0); FRONT + 1];
        let mut count = 0;
        for &other in self.points().iter().filter(|&&other| !better(point, other)) {
            all[count] = other;
            count += 1;
        }
        let place = all[..count].partition_point(|other| other.0 < point.0);
        all.copy_within(place..count, place + 1);
        all[place] = point;
        count += 1;
        if count > FRONT {
            let nearest = (1..count).min_by_key(|&at| all[at].0 - all[at - 1].0).unwrap_or(1);
            all[nearest - 1].1 = all[nearest].1;
            all.copy_within(nearest + 1..count, nearest);
            count -= 1;
        }
        self.points[..count].copy_from_slice(&all[..count]);
        self.count = count;
    }
}

/// By place in the order: the least start and end, and by place from the last, from the end of the timetable.
struct Windows {
    heads: Vec<(Nanos, Nanos)>,
    tails: Vec<(Nanos, Nanos)>,
}

/// Chunks that are not told apart.
#[derive(Default)]
struct Group {
    classes: Vec<Class>,
    count: usize,
    /// By place: heads of forwards and of I.
    heads: [Vec<i64>; 2],
    /// By place from the last: tails from their ends.
    tails: [Vec<i64>; 2],
    /// Of one chunk from F to I.
    activation: u64,
    /// So many are between F and I at most.
    most: usize,
}

/// What a rank can do next.
#[derive(Clone, Copy)]
struct Turn {
    /// The groups whose forward and whose backward it has.
    has: [Option<usize>; 2],
    cost: i64,
    /// W that it leaves for later.
    leaves: i64,
}

/// Per group, how many forwards and how many backwards have started.
type State = [[usize; 2]; 2];

/// One rank. There are two groups, of which the second may be empty.
struct Turns {
    groups: [Group; 2],
    /// Micro-batches come to the second group from the first, and go back there.
    nested: bool,
    turns: Vec<Turn>,
    room: Room,
    /// The longest W.
    weights: i64,
    within: i64,
}

/// Times are counted up to here, so that some of them can be added up.
const FAR: i64 = i64::MAX / 16;

fn whole(time: Nanos) -> i64 {
    i64::try_from(time.0).unwrap_or(FAR).min(FAR)
}

impl Group {
    fn new(problem: &Problem, lines: &Lines, (heads, tails): (&Heads, &Tails), room: &Room, of: &[Class]) -> Self {
        let sorted = |of_chunk: &dyn Fn(usize, usize, usize) -> Nanos| {
            let chunks = of.iter().flat_map(|&(at, stage)| (0..lines.lines[at].count).map(move |k| (at, stage, k)));
            let mut all: Vec<i64> = chunks.map(|(at, stage, k)| whole(of_chunk(at, stage, k))).collect();
            all.sort_unstable();
            all
        };
        let input = |at: usize, stage| lines.lines[at].input(stage);
        let count = of.iter().map(|&(at, _)| lines.lines[at].count).sum();
        Self {
            classes: of.to_vec(),
            count,
            heads: [
                sorted(&|at, stage, k| heads.start(at, stage, k)),
                sorted(&|at, stage, k| heads.start(at, input(at, stage), k)),
            ],
            tails: [
                sorted(&|at, stage, q| tails.end(at, stage, q)),
                sorted(&|at, stage, q| tails.end(at, input(at, stage), q)),
            ],
            activation: Room::activation(of, problem),
            most: room.most(of, problem).min(count),
        }
    }

    fn states(&self) -> usize {
        (self.count + 1) * (self.most + 1)
    }
}

/// The classes of a rank in two groups, by costs, or one for each of two classes; or in one group. `None`: both have too many states.
fn groups(problem: &Problem, lines: &Lines, rank: usize, room: &Room) -> Option<[Vec<Class>; 2]> {
    let classes = &lines.on_rank[rank];
    let cost = |&(_, stage): &Class| &problem.stages[stage];
    let (first, second): (Vec<Class>, Vec<Class>) = match classes[..] {
        [a, b] => (vec![a], vec![b]),
        _ => classes.iter().partition(|class| cost(class) == cost(&classes[0])),
    };
    let alike = second.windows(2).all(|pair| cost(&pair[0]) == cost(&pair[1]));
    let states = |of: &[Class]| {
        let count: usize = of.iter().map(|&(line, _)| lines.lines[line].count).sum();
        (count + 1).saturating_mul(room.most(of, problem).min(count) + 1)
    };
    let share = STATES / lines.on_rank.len();
    if alike && states(&first).saturating_mul(states(&second)) <= share {
        Some([first, second])
    } else {
        (states(classes) <= share).then(|| [classes.clone(), Vec::new()])
    }
}

impl Turns {
    /// `None`: there is too much of it.
    fn new(problem: &Problem, lines: &Lines, heads: &Heads, tails: &Tails, rank: usize, within: Nanos) -> Option<Self> {
        let room = Room::new(problem, lines, rank);
        let groups = groups(problem, lines, rank, &room)?;
        let nested = match (&groups[0][..], &groups[1][..]) {
            (&[first], &[second]) => first.0 == second.0 && first.1 < second.1,
            _ => false,
        };
        let stages = &problem.stages;
        let least = |group: usize, of: &dyn Fn(usize) -> Nanos| {
            groups[group].iter().map(|&(_, stage)| whole(of(stage))).min().unwrap_or(FAR)
        };
        let apart = |group: usize| {
            let in_parts = least(group, &|stage| stages[stage].i) + least(group, &|stage| stages[stage].w);
            in_parts.min(least(group, &|stage| stages[stage].b))
        };
        let mut turns = Vec::new();
        for group in (0..2).filter(|&group| !groups[group].is_empty()) {
            let [f, i, w, b]: [i64; 4] = [
                least(group, &|stage| stages[stage].f),
                least(group, &|stage| stages[stage].i),
                least(group, &|stage| stages[stage].w),
                least(group, &|stage| stages[stage].b),
            ];
            turns.push(Turn { has: [Some(group), None], cost: f, leaves: 0 });
            turns.push(Turn { has: [None, Some(group)], cost: i, leaves: w });
            if b < i + w {
                turns.push(Turn { has: [None, Some(group)], cost: b, leaves: 0 });
            }
            for with in (0..2).filter(|&with| !groups[with].is_empty()) {
                let pairs = groups[group].iter().flat_map(|&(_, f)| groups[with].iter().map(move |&(_, b)| (f, b)));
                let pairs = pairs.map(|(f, b)| whole(problem.pair_cost(f as u32, b as u32)));
                if let Some(cost) = pairs.min().filter(|&cost| cost < f + apart(with)) {
                    turns.push(Turn { has: [Some(group), Some(with)], cost, leaves: 0 });
                }
            }
        }
        let weights = groups.iter().flatten().map(|&(_, stage)| whole(stages[stage].w)).max().unwrap_or(0);
        let groups = groups.map(|of| Group::new(problem, lines, (heads, tails), &room, &of));
        Some(Self { groups, nested, turns, room, weights, within: whole(within) })
    }

    /// The place of a state.
    fn place(&self, state: State) -> usize {
        let of = |group: usize| state[group][0] * (self.groups[group].most + 1) + state[group][0] - state[group][1];
        of(0) * self.groups[1].states() + of(1)
    }

    /// All states, each behind those that come before it.
    fn states(&self) -> Vec<State> {
        let of = |group: &Group| -> Vec<[usize; 2]> {
            (0..=group.count).flat_map(|i| (i.saturating_sub(group.most)..=i).map(move |j| [i, j])).collect()
        };
        let [first, second] = [of(&self.groups[0]), of(&self.groups[1])];
        let both = first.iter().flat_map(|&a| second.iter().map(move |&b| [a, b]));
        both.filter(|[a, b]| !self.nested || (b[0] <= a[0] && a[1] <= b[1])).collect()
    }

    /// What a turn needs of memory, and its head and tail, and where it leads; `None`: it cannot be taken.
    fn take(&self, turn: Turn, state: State) -> Option<(i64, i64, i64, State)> {
        let (mut may_wait, mut head, mut tail, mut next) = (i64::MAX, 0, 0, state);
        if let Some(at) = turn.has[0] {
            let group = &self.groups[at];
            let [i, j] = state[at];
            if i == group.count || i - j == group.most || (self.nested && at == 1 && i == state[0][0]) {
                return None;
            }
            let held = |(group, [i, j]): (&Group, [usize; 2])| u128::from(group.activation) * (i - j) as u128;
            let held: u128 = self.groups.iter().zip(state).map(held).sum();
            let waiting = self.room.waiting(held + u128::from(group.activation))?;
            may_wait = i64::try_from(waiting).unwrap_or(i64::MAX).saturating_mul(self.weights.max(1));
            head = group.heads[0][i];
            tail = group.tails[0][group.count - 1 - i];
            next[at][0] += 1;
        }
        if let Some(at) = turn.has[1] {
            let group = &self.groups[at];
            let [i, j] = state[at];
            if j == i || (self.nested && at == 0 && j == state[1][1]) {
                return None;
            }
            head = head.max(group.heads[1][j]);
            tail = tail.max(group.tails[1][group.count - 1 - j]);
            next[at][1] += 1;
        }
        Some((may_wait, head, tail, next))
    }

    /// The start of a turn from a point that can be reached, and the W that waits then.
    fn start((time, waits): (i64, i64), may_wait: i64, head: i64) -> (i64, i64) {
        let start = time.max(head);
        let waits = (waits - (start - time)).max(0);
        let first = (waits - may_wait).max(0);
        (start + first, waits - first)
    }

    /// Per group, of forwards and of I, by place, what can be. `None`: nothing that ends in time.
    fn windows(&self) -> Option<[[Windows; 2]; 2]> {
        let states = self.states();
        let fronts = self.reached(&states);
        let rests = self.rests(&states);
        let mut least = self.groups.each_ref().map(|group| [(); 2].map(|()| [(); 4].map(|()| vec![FAR; group.count])));
        for &state in &states {
            let front = &fronts[self.place(state)];
            if front.count == 0 {
                continue;
            }
            for &turn in &self.turns {
                let Some((may_wait, head, tail, next)) = self.take(turn, state) else { continue };
                let rest = &rests[self.place(next)];
                for &point in front.points() {
                    let (start, waits) = Self::start(point, may_wait, head);
                    let (end, waits) = (start + turn.cost, waits + turn.leaves);
                    for &(left, room) in rest.points() {
                        let goes_on = left.max(tail);
                        // `room` is counted below zero.
                        let more = (waits + room - (goes_on - left)).max(0);
                        if end + goes_on + more > self.within {
                            continue;
                        }
                        for (kind, at) in turn.has.iter().enumerate() {
                            let Some(at) = *at else { continue };
                            let place = state[at][kind];
                            let from_last = self.groups[at].count - 1 - place;
                            let values =
                                [(place, start), (place, end), (from_last, goes_on + turn.cost), (from_last, goes_on)];
                            for (least, (place, value)) in least[at][kind].iter_mut().zip(values) {
                                least[place] = least[place].min(value);
                            }
                        }
                    }
                }
            }
        }
        if least.iter().flatten().flatten().flatten().any(|&least| least == FAR) {
            return None;
        }
        Some(least.map(|group| {
            group.map(|[start, end, tail_start, tail_end]| Windows {
                heads: never_less(start, end),
                tails: never_less(tail_start, tail_end),
            })
        }))
    }

    /// Per state, the least times at which it can be reached, with the W that waits.
    fn reached(&self, states: &[State]) -> Vec<Front> {
        let mut fronts = vec![Front::default(); self.groups[0].states() * self.groups[1].states()];
        fronts[0].add((0, 0));
        for &state in states {
            let front = fronts[self.place(state)];
            if front.count == 0 {
                continue;
            }
            for &turn in &self.turns {
                let Some((may_wait, head, tail, next)) = self.take(turn, state) else { continue };
                let next = &mut fronts[self.place(next)];
                for &point in front.points() {
                    let (start, waits) = Self::start(point, may_wait, head);
                    let end = start + turn.cost;
                    if end + tail <= self.within {
                        next.add((end, waits + turn.leaves));
                    }
                }
            }
        }
        fronts
    }

    /// Per state, the least times from there to the end, with the W for which there is room, counted below zero.
    fn rests(&self, states: &[State]) -> Vec<Front> {
        let mut rests = vec![Front::default(); self.groups[0].states() * self.groups[1].states()];
        rests[self.place(self.groups.each_ref().map(|group| [group.count; 2]))].add((0, 0));
        for &state in states.iter().rev() {
            let mut own = rests[self.place(state)];
            for &turn in &self.turns {
                let Some((may_wait, head, tail, next)) = self.take(turn, state) else { continue };
                for &(left, room) in rests[self.place(next)].points() {
                    let goes_on = left.max(tail);
                    let room = (goes_on - left) - room;
                    let more = (turn.leaves - room).max(0);
                    let room = (room + more - turn.leaves).min(may_wait);
                    let left = goes_on + more + turn.cost;
                    if head + left <= self.within {
                        own.add((left, -room));
                    }
                }
            }
            rests[self.place(state)] = own;
        }
        rests
    }
}

/// What holds for a place holds for all behind it too.
fn never_less(start: Vec<i64>, end: Vec<i64>) -> Vec<(Nanos, Nanos)> {
    let mut all: Vec<(i64, i64)> = start.into_iter().zip(end).collect();
    for at in (1..all.len()).rev() {
        all[at - 1] = (all[at - 1].0.min(all[at].0), all[at - 1].1.min(all[at].1));
    }
    all.into_iter().map(|(start, end)| (Nanos(start as u64), Nanos(end as u64))).collect()
}
