//! A partial timetable.

use std::collections::VecDeque;

use crate::ir::{Action, ChunkId, Memory, Problem, StageMemory, Timetable};
use crate::passes::pipeline::bound::{Alone, Heads, Known, Line, Lines, Progress, Tails, chains, machines};
use crate::units::Nanos;

use super::moves::{Class, Move, What};

/// What has been put into the timetable so far, each action as soon as it can start.
pub(super) struct State<'a> {
    pub problem: &'a Problem,
    pub lines: Lines,
    pub progress: Progress,
    /// The times of what is done, and the least times of the rest as of the latest [`State::bound`].
    pub heads: Heads,
    tails: Tails,
    /// Per rank, how many may be alone in a timetable that is short enough.
    alone: Vec<Alone>,
    /// Per rank, how many are.
    used: Vec<Alone>,
    /// Per rank, what its chunks hold.
    held: Vec<u64>,
    /// In the order in which they were made, with the free time of the rank before.
    made: Vec<(Move, Nanos)>,
}

impl<'a> State<'a> {
    /// Nothing is in it. Only timetables count of which this is known.
    pub fn new(problem: &'a Problem, lines: Lines, known: Known) -> Self {
        let ranks = lines.on_rank.len();
        let Known { alone, heads, tails, .. } = known;
        let progress = Progress::none(&lines, alone.clone());
        let used = vec![Alone { forwards: 0, backwards: 0 }; ranks];
        Self { problem, lines, progress, heads, tails, alone, used, held: vec![0; ranks], made: Vec::new() }
    }

    /// From now on only timetables count of which this is known.
    pub fn restrict(&mut self, known: Known) {
        (self.alone, self.tails) = (known.alone, known.tails);
        for rank in 0..self.alone.len() {
            self.progress.alone[rank] = self.alone[rank].less(self.used[rank]);
        }
    }

    /// No timetable that continues this one and is shorter than `enough` is below it.
    pub fn bound(&mut self, enough: Nanos) -> Nanos {
        let too_many =
            |(used, most): (&Alone, &Alone)| used.forwards > most.forwards || used.backwards > most.backwards;
        if self.used.iter().zip(&self.alone).any(too_many) {
            return Nanos(u64::MAX);
        }
        self.heads.fill(&self.lines, &self.progress);
        let bound = chains(&self.lines, &self.heads, &self.tails, &self.progress);
        if bound >= enough {
            return bound;
        }
        let shorter = enough.saturating_sub(Nanos(1));
        bound.max(machines(&self.lines, &self.heads, &self.tails, &self.progress, shorter))
    }

    /// Whether every F and I is in it. What is left then is W, in any order.
    pub fn is_whole(&self) -> bool {
        let whole = |(steps, line): (&Vec<usize>, &Line)| steps.iter().all(|&done| done == line.count);
        self.progress.steps.iter().zip(&self.lines.lines).all(whole)
    }

    /// Whether every F and I of a rank is in it.
    pub fn is_whole_on(&self, rank: usize) -> bool {
        // Nothing of a chunk comes behind its I.
        self.lines.on_rank[rank].iter().all(|&class| self.inputs(class) == self.lines.lines[class.0].count)
    }

    /// When it ends, with all W that are left put at the ends of their ranks.
    pub fn makespan(&self) -> Nanos {
        let end = |(&free, classes): (&Nanos, &Vec<Class>)| {
            let left = classes.iter().map(|&class| self.problem.stages[class.1].w * self.pending(class) as u64);
            free + left.sum::<Nanos>()
        };
        self.progress.free.iter().zip(&self.lines.on_rank).map(end).max().unwrap_or(Nanos::ZERO)
    }

    /// Forwards of a class that are done.
    pub fn forwards(&self, (line, stage): Class) -> usize {
        self.progress.steps[line][stage]
    }

    /// I of a class that are done, alone, in B or in FB.
    pub fn inputs(&self, (line, stage): Class) -> usize {
        self.progress.steps[line][self.lines.lines[line].input(stage)]
    }

    /// Chunks whose I is done and whose W is not.
    pub fn pending(&self, class: Class) -> usize {
        self.inputs(class) - self.progress.weights[class.0][class.1]
    }

    /// Whether one more F of the class fits into its rank's memory.
    pub fn has_room(&self, class: Class) -> bool {
        let Some(memory) = &self.problem.memory else { return true };
        let rank = self.rank(class);
        self.held[rank].saturating_add(memory.stages[class.1].activation) <= memory.limits[rank]
    }

    fn rank(&self, (line, stage): Class) -> usize {
        self.lines.lines[line].steps[stage].rank
    }

    /// Adds a move, which must be one of those that [`Rules::moves`](super::moves::Rules::moves) gives now.
    pub fn apply(&mut self, next: Move) {
        self.made.push((next, self.progress.free[next.rank]));
        self.progress.free[next.rank] = next.end;
        self.used[next.rank] = self.used[next.rank].plus(next.what.alone());
        self.progress.alone[next.rank] = self.alone[next.rank].less(self.used[next.rank]);
        if let Some(class) = next.what.forward() {
            self.advance(class.0, class.1, next);
            self.held[next.rank] += self.holds(class).activation;
        }
        if let Some(class) = next.what.input() {
            self.advance(class.0, self.lines.lines[class.0].input(class.1), next);
            let StageMemory { activation, for_weights } = self.holds(class);
            self.held[next.rank] = self.held[next.rank] - activation + for_weights;
        }
        if let Some(class) = next.what.weights() {
            self.progress.weights[class.0][class.1] += 1;
            self.held[next.rank] -= self.holds(class).for_weights;
        }
    }

    fn advance(&mut self, line: usize, step: usize, made: Move) {
        let done = &mut self.progress.steps[line][step];
        self.heads.set(line, step, *done, (made.start, made.end));
        *done += 1;
    }

    /// Takes the latest move back, if there is one.
    pub fn undo(&mut self) {
        let Some((last, free)) = self.made.pop() else { return };
        self.progress.free[last.rank] = free;
        self.used[last.rank] = self.used[last.rank].less(last.what.alone());
        self.progress.alone[last.rank] = self.alone[last.rank].less(self.used[last.rank]);
        if let Some(class) = last.what.weights() {
            self.progress.weights[class.0][class.1] -= 1;
            self.held[last.rank] += self.holds(class).for_weights;
        }
        if let Some(class) = last.what.input() {
            self.progress.steps[class.0][self.lines.lines[class.0].input(class.1)] -= 1;
            let StageMemory { activation, for_weights } = self.holds(class);
            self.held[last.rank] = self.held[last.rank] - for_weights + activation;
        }
        if let Some(class) = last.what.forward() {
            self.progress.steps[class.0][class.1] -= 1;
            self.held[last.rank] -= self.holds(class).activation;
        }
    }

    /// What a chunk holds.
    fn holds(&self, (_, stage): Class) -> StageMemory {
        let nothing = StageMemory { activation: 0, for_weights: 0 };
        self.problem.memory.as_ref().map_or(nothing, |memory: &Memory| memory.stages[stage])
    }

    /// The timetable of a whole one: each class takes its micro-batches in order.
    pub fn timetable(&self) -> Timetable {
        let layout = self.problem.layout;
        let offsets = [0, layout.micro_batches - layout.micro_batches / 2];
        let stages = layout.stages as usize;
        let at = |(line, stage): Class| line * stages + stage;
        let chunk = |(line, stage): Class, k: u32| ChunkId::new(stage as u32, offsets[line] + k);
        let classes = self.lines.lines.len() * stages;
        let (mut forwards, mut inputs) = (vec![0_u32; classes], vec![0_u32; classes]);
        let mut pending = vec![VecDeque::new(); classes];
        let mut ranks = vec![Vec::new(); layout.ranks as usize];
        let take = |count: &mut Vec<u32>, class: Class| {
            count[at(class)] += 1;
            chunk(class, count[at(class)] - 1)
        };
        for (made, _) in &self.made {
            let action = match made.what {
                What::F(class) => Action::F(take(&mut forwards, class)),
                What::B(class) => Action::B(take(&mut inputs, class)),
                What::FB(f, b) => Action::FB(take(&mut forwards, f), take(&mut inputs, b)),
                What::I(class) => {
                    let chunk = take(&mut inputs, class);
                    pending[at(class)].push_back(chunk);
                    Action::I(chunk)
                }
                What::W(class) => match pending[at(class)].pop_front() {
                    Some(chunk) => Action::W(chunk),
                    None => continue,
                },
                What::Wait => continue,
            };
            ranks[made.rank].push(action);
        }
        for (rank, classes) in ranks.iter_mut().zip(&self.lines.on_rank) {
            rank.extend(
                classes.iter().flat_map(|&class| pending[at(class)].drain(..).map(Action::W).collect::<Vec<_>>()),
            );
        }
        Timetable { layout, ranks }
    }
}
