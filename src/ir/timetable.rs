//! A timetable: for every rank the total order of its actions, without times.

use super::{Action, ChunkId, Layout};

/// The order in which each rank runs its actions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timetable {
    /// Which rank holds what.
    pub layout: Layout,
    /// One list per rank.
    pub ranks: Vec<Vec<Action>>,
}

impl Timetable {
    /// One line per rank, stage-indexed tokens (`3F7`) separated by spaces.
    pub fn stage_tokens(&self) -> String {
        self.lines(|_, action| action.to_string())
    }

    /// One line per rank, tokens in the rank's own counting, as in DeepSeek's DualPipe code: `F0.3` is the fourth forward
    /// of local phase 0. `BW` is a full backward, `B` its input half, `W` the weight half, `FB0.7:1.3` an overlapped pair.
    pub fn local_tokens(&self) -> String {
        self.lines(|rank, action| self.local_token(rank, action))
    }

    /// The local token of one action of `rank`.
    pub fn local_token(&self, rank: u32, action: Action) -> String {
        match action {
            Action::F(c) => format!("F{}", self.local(rank, c)),
            Action::B(c) => format!("BW{}", self.local(rank, c)),
            Action::I(c) => format!("B{}", self.local(rank, c)),
            Action::W(c) => format!("W{}", self.local(rank, c)),
            Action::FB(f, b) => format!("FB{}:{}", self.local(rank, f), self.local(rank, b)),
        }
    }

    /// `phase.counter` of a chunk on `rank`. The counter starts anew in each direction.
    fn local(&self, rank: u32, chunk: ChunkId) -> String {
        let layout = &self.layout;
        let stages = layout.stages_of(rank);
        let phase = stages.iter().position(|&stage| stage == chunk.stage).unwrap_or(0);
        let before = match layout.direction(chunk.micro_batch) {
            0 => 0,
            _ => layout.micro_batches - layout.micro_batches / 2,
        };
        format!("{phase}.{}", chunk.micro_batch - before)
    }

    fn lines(&self, token: impl Fn(u32, Action) -> String) -> String {
        let mut text = String::new();
        for (rank, actions) in (0..).zip(&self.ranks) {
            let tokens: Vec<String> = actions.iter().map(|&action| token(rank, action)).collect();
            text.push_str(&tokens.join(" "));
            text.push('\n');
        }
        text
    }
}
