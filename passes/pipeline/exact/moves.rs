//! What may come next in a partial timetable, and what of it is worth trying (Giffler and Thompson 1960).

use crate::passes::pipeline::bound::Alone;
use crate::units::Nanos;

use super::state::State;

/// The chunks of a stage that go the same way: line and stage. Interchangeable, so they are taken in order.
pub(super) type Class = (usize, usize);

/// An action of a class, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    F(Class),
    B(Class),
    I(Class),
    W(Class),
    FB(Class, Class),
    /// Nothing, until the end of the move.
    Wait,
}

/// A continuation of a partial timetable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub what: What,
    pub rank: usize,
    pub start: Nanos,
    pub end: Nanos,
}

impl What {
    /// The class whose F it has.
    pub fn forward(self) -> Option<Class> {
        match self {
            Self::F(class) | Self::FB(class, _) => Some(class),
            _ => None,
        }
    }

    /// What of it is in no pair.
    pub fn alone(self) -> Alone {
        match self {
            Self::F(_) => Alone { forwards: 1, backwards: 0 },
            Self::B(_) | Self::I(_) => Alone { forwards: 0, backwards: 1 },
            Self::W(_) | Self::FB(..) | Self::Wait => Alone { forwards: 0, backwards: 0 },
        }
    }

    /// The class whose I it has.
    pub fn input(self) -> Option<Class> {
        match self {
            Self::B(class) | Self::I(class) | Self::FB(_, class) => Some(class),
            _ => None,
        }
    }

    /// The class whose W it has.
    pub fn weights(self) -> Option<Class> {
        match self {
            Self::B(class) | Self::W(class) | Self::FB(_, class) => Some(class),
            _ => None,
        }
    }
}

/// Which moves a rank never regrets to have made where there was time for them, and which it never needs.
///
/// To move an action to the front of what is left of a rank's order leaves a gap where it was. It does no harm if the gap
/// is long enough for the rest of the action that had it there, and if no memory limit is passed in between.
pub(super) struct Rules {
    /// Per line and stage.
    pub classes: Vec<Vec<Rule>>,
}

/// See [`Rules`].
pub(super) struct Rule {
    /// B may be worth trying: it is shorter than I and W.
    whole: bool,
    /// Stages whose F may be worth overlapping with its B: the pair is shorter than one after the other.
    overlaps: Vec<bool>,
    /// F, I and B may be moved to the front.
    early: [bool; 3],
}

impl Rules {
    pub fn new(state: &State) -> Self {
        let problem = state.problem;
        let rule = |(line, stage): Class| {
            let cost = &problem.stages[stage];
            let apart = |b: usize| problem.stages[b].b.min(problem.stages[b].i + problem.stages[b].w);
            let rank = state.lines.lines[line].steps[stage].rank;
            let beside = &state.lines.on_rank[rank];
            let pair = |f: usize, b: usize| problem.pair_cost(f as u32, b as u32);
            let overlaps = |f: usize, b: usize| pair(f, b) < problem.stages[f].f + apart(b);
            let whole = cost.b < cost.i + cost.w;
            // In a pair, what is left when one of the two has gone.
            let with_forward = |rest: Nanos| {
                beside.iter().all(|&(_, f)| !overlaps(f, stage) || problem.stages[f].f + rest <= pair(f, stage))
            };
            let early_f = beside.iter().all(|&(_, b)| !overlaps(stage, b) || apart(b) <= pair(stage, b));
            // Behind it in the order are its own kind only, or there is room for everything.
            let fits = problem.memory.as_ref().is_none_or(|memory| {
                let all = beside.iter().map(|&(line, stage)| {
                    u128::from(memory.stages[stage].activation) * state.lines.lines[line].count as u128
                });
                beside.len() == 1 || all.sum::<u128>() <= u128::from(memory.limits[rank])
            });
            let early_i = with_forward(cost.w) && (!whole || cost.w <= cost.b);
            let early_b = with_forward(Nanos::ZERO);
            Rule {
                whole,
                overlaps: (0..problem.stages.len()).map(|f| overlaps(f, stage)).collect(),
                early: [early_f && fits, early_i, early_b],
            }
        };
        let line = |at: usize| (0..problem.stages.len()).map(|stage| rule((at, stage))).collect();
        Self { classes: (0..state.lines.lines.len()).map(line).collect() }
    }

    /// Whether a move may be made as soon as there is time.
    fn is_early(&self, what: What) -> bool {
        let rule = |(line, stage): Class| &self.classes[line][stage];
        match what {
            What::F(class) => rule(class).early[0],
            What::I(class) => rule(class).early[1],
            What::B(class) => rule(class).early[2],
            What::W(_) => true,
            What::FB(..) | What::Wait => false,
        }
    }

    /// The moves of which one comes next in some shortest timetable that continues this one, the most promising last.
    ///
    /// Let `first` be the move that could end first of all. The next action on its rank either starts before that end, and
    /// is then one of those that can be made now, as what it reads has ended by then; or there is time for `first` before
    /// it. If `first` is none that may be moved to the front, the rank also may wait until that end.
    pub fn moves(&self, state: &State) -> Vec<Move> {
        let mut all = Vec::new();
        for rank in 0..state.lines.on_rank.len() {
            if !state.is_whole_on(rank) {
                self.moves_of(state, rank, &mut all);
            }
        }
        let Some(first) = all.iter().copied().min_by_key(|next| (next.end, !self.is_early(next.what), next.rank))
        else {
            return all;
        };
        all.retain(|next| next.rank == first.rank && (next.start < first.end || *next == first));
        if !self.is_early(first.what) {
            all.push(Move { what: What::Wait, rank: first.rank, start: first.end, end: first.end });
        }
        all.sort_by_key(|next| std::cmp::Reverse((next.start, turn(next.what))));
        all
    }

    fn moves_of(&self, state: &State, rank: usize, moves: &mut Vec<Move>) {
        let free = state.progress.free[rank];
        let classes = &state.lines.on_rank[rank];
        let mut add = |what, start: Nanos, cost| moves.push(Move { what, rank, start, end: start + cost });
        let problem = state.problem;
        let ready = |line: usize, step: usize, k: usize| {
            let hop = state.lines.lines[line].steps[step].hop;
            match step.checked_sub(1) {
                None => Some(free),
                Some(before) if state.progress.steps[line][before] > k => {
                    Some(free.max(state.heads.end(line, before, k) + hop))
                }
                Some(_) => None,
            }
        };
        let forwards = classes.iter().filter_map(|&class| {
            let k = state.forwards(class);
            let comes = k < state.lines.lines[class.0].count && state.has_room(class);
            let start = comes.then(|| ready(class.0, class.1, k)).flatten()?;
            Some((class, start))
        });
        let forwards: Vec<(Class, Nanos)> = forwards.collect();
        for &(class, start) in &forwards {
            add(What::F(class), start, problem.stages[class.1].f);
        }
        for &class in classes {
            let (cost, rule) = (&problem.stages[class.1], &self.classes[class.0][class.1]);
            if state.pending(class) > 0 {
                add(What::W(class), free, cost.w);
            }
            let k = state.inputs(class);
            if k == state.forwards(class) {
                continue;
            }
            let Some(start) = ready(class.0, state.lines.lines[class.0].input(class.1), k) else { continue };
            add(What::I(class), start, cost.i);
            if rule.whole {
                add(What::B(class), start, cost.b);
            }
            for &(forward, other) in forwards.iter().filter(|(forward, _)| rule.overlaps[forward.1]) {
                add(What::FB(forward, class), start.max(other), problem.pair_cost(forward.1 as u32, class.1 as u32));
            }
        }
    }
}

/// Of moves that start at the same time, which is tried first.
fn turn(what: What) -> u32 {
    match what {
        What::FB(..) => 0,
        What::I(_) => 1,
        What::B(_) => 2,
        What::F(_) => 3,
        What::W(_) => 4,
        What::Wait => 5,
    }
}
