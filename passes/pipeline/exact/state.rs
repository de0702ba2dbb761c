//! A partial timetable.

use std::collections::VecDeque;

use crate::ir::{Action, ChunkId, Memory, Problem, StageMemory, Timetable};
use crate::passes::pipeline::bound::{Heads, Line, Lines, Progress, Tails, chains, machines};
use crate::units::Nanos;

use super::moves::{Class, Move, What};

/// What has been put into the timetable so far, each action as soon as it can start.
pub(super) struct State<'a> {
    pub problem: &'a Problem,
    pub lines: Lines,
    pub progress: Progress,
    /// Per line: the times of what is done, and the least times of the rest as of the latest [`State::bound`].
    pub heads: Vec<Heads>,
    tails: Vec<Tails>,
    /// Per rank, what its chunks hold.
    held: Vec<u64>,
    /// In the order in which they were made, with the free time of the rank before.
    made: Vec<(Move, Nanos)>,
}

impl<'a> State<'a> {
    /// Nothing is in it.
    pub fn new(problem: &'a Problem) -> Self {
        let lines = Lines::new(problem);
        let heads = lines.lines.iter().map(Heads::new).collect();
        let tails = (0..lines.lines.len()).map(|at| Tails::new(&lines, at)).collect();
        let progress = Progress::none(&lines);
        let held = vec![0; lines.on_rank.len()];
        Self { problem, lines, progress, heads, tails, held, made: Vec::new() }
    }

    /// No timetable that continues this one is below it. Not always computed to its end where it is no less than `enough`.
    pub fn bound(&mut self, enough: Nanos) -> Nanos {
        for (at, heads) in self.heads.iter_mut().enumerate() {
            heads.fill(&self.lines, at, &self.progress);
        }
        let bound = chains(&self.lines, &self.heads, &self.tails, &self.progress);
        if bound >= enough {
            return bound;
        }
        bound.max(machines(&self.lines, &self.heads, &self.tails, &self.progress))
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

    /// Adds a move, which must be one of the [`moves`](State::moves) now.
    pub fn apply(&mut self, next: Move) {
        self.made.push((next, self.progress.free[next.rank]));
        self.progress.free[next.rank] = next.end;
        if let Some(class) = next.what.forward() {
            self.advance(class.0, class.1, next.end);
            self.held[next.rank] += self.holds(class).activation;
        }
        if let Some(class) = next.what.input() {
            self.advance(class.0, self.lines.lines[class.0].input(class.1), next.end);
            self.held[next.rank] -= self.holds(class).activation - self.holds(class).for_weights;
        }
        if let Some(class) = next.what.weights() {
            self.progress.weights[class.0][class.1] += 1;
            self.held[next.rank] -= self.holds(class).for_weights;
        }
    }

    fn advance(&mut self, line: usize, step: usize, end: Nanos) {
        let done = &mut self.progress.steps[line][step];
        self.heads[line].set(step, *done, end);
        *done += 1;
    }

    /// Takes the latest move back, if there is one.
    pub fn undo(&mut self) {
        let Some((last, free)) = self.made.pop() else { return };
        self.progress.free[last.rank] = free;
        if let Some(class) = last.what.weights() {
            self.progress.weights[class.0][class.1] -= 1;
            self.held[last.rank] += self.holds(class).for_weights;
        }
        if let Some(class) = last.what.input() {
            self.progress.steps[class.0][self.lines.lines[class.0].input(class.1)] -= 1;
            self.held[last.rank] += self.holds(class).activation - self.holds(class).for_weights;
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
