//! What the verifier has to say: rules, violations, and how much was looked at.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::ir::Action;
use crate::plan::{Item, Plan};

/// Violations of one rule that are written out; the others are only counted.
pub const LISTED: u64 = 20;

/// What a plan must keep to. In the order in which the rules are asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Every number refers to something that is there, and the layout, stages, programs and rings fit each other.
    WellFormed,
    /// A chunk program runs exactly what the units of its stage call for.
    ProgramContent,
    /// Within a chunk program, nothing runs before what it reads.
    ProgramOrder,
    /// Every op has SMs, and ops that may run at the same time have no more than the GPU has.
    Sms,
    /// Every layer is in one stage; every chunk is run forward and backward once, on its rank; every stage is updated once.
    Completeness,
    /// Every transfer has its other end, in the same order, on a rank that needs it.
    UnmatchedTransfer,
    /// The ranks of a communicator meet its collectives in the same order.
    CollectiveOrder,
    /// No items wait for each other in a circle, over all ranks.
    Deadlock,
    /// Nothing starts before what it reads has been written.
    ReadBeforeWrite,
    /// Every message has a ring, with slots that are large enough.
    BufferSize,
    /// No slot is written while what was in it may still be read.
    WriteWhileRead,
    /// Whatever needs memory has a place in the arena of its rank: one for each block that an item takes, aligned and within.
    Places,
    /// Nothing shares bytes of an arena with what is there at the same time.
    Aliasing,
    /// State and arena of every rank fit its memory, and workspaces are large enough.
    Memory,
}

impl Rule {
    /// All rules, in the order in which they are asked.
    pub const ALL: [Self; 14] = [
        Self::WellFormed,
        Self::ProgramContent,
        Self::ProgramOrder,
        Self::Sms,
        Self::Completeness,
        Self::UnmatchedTransfer,
        Self::CollectiveOrder,
        Self::Deadlock,
        Self::ReadBeforeWrite,
        Self::BufferSize,
        Self::WriteWhileRead,
        Self::Places,
        Self::Aliasing,
        Self::Memory,
    ];

    /// Its name in messages and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::WellFormed => "well-formed",
            Self::ProgramContent => "program-content",
            Self::ProgramOrder => "program-order",
            Self::Sms => "sms",
            Self::Completeness => "completeness",
            Self::UnmatchedTransfer => "unmatched-transfer",
            Self::CollectiveOrder => "collective-order",
            Self::Deadlock => "deadlock",
            Self::ReadBeforeWrite => "read-before-write",
            Self::BufferSize => "buffer-size",
            Self::WriteWhileRead => "write-while-read",
            Self::Places => "places",
            Self::Aliasing => "aliasing",
            Self::Memory => "memory",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One thing that is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The rule that it breaks.
    pub rule: Rule,
    /// Where it shows, if on one rank.
    pub rank: Option<u32>,
    /// Index into that rank's items, if it is one item's.
    pub item: Option<usize>,
    /// What is at fault: an item's task, or a program's op, a ring, a stage.
    pub action: String,
    /// What is wrong with it, and against what: a clause whose subject is the action.
    pub message: String,
}

impl Violation {
    /// Of one item of a rank.
    pub(super) fn item(rule: Rule, plan: &Plan, rank: u32, item: usize, message: String) -> Self {
        let task = plan.ranks.get(rank as usize).and_then(|rank| rank.items.get(item));
        let action = task.map_or_else(String::new, |item| item.0.to_string());
        Self { rule, rank: Some(rank), item: Some(item), action, message }
    }

    /// Of something of a rank that is not one item.
    pub(super) fn rank(rule: Rule, rank: u32, action: impl Into<String>, message: String) -> Self {
        Self { rule, rank: Some(rank), item: None, action: action.into(), message }
    }

    /// Of a chunk program, or of an op of it. It names the first item that runs the program, if one does; with `stages`, one
    /// whose F, I and W are of these stages if there is one.
    pub(super) fn program(
        rule: Rule,
        plan: &Plan,
        program: u32,
        stages: Option<[Option<u32>; 3]>,
        action: String,
        message: String,
    ) -> Self {
        let items = || {
            let ranks = (0..).zip(&plan.ranks);
            let items =
                ranks.flat_map(|(rank, list)| list.items.iter().enumerate().map(move |(at, item)| (rank, at, item)));
            items.filter(move |(.., item)| item.0.action().and_then(|action| plan.program_of(action)) == Some(program))
        };
        let of_stages = |item: &Item| {
            let parts = item.0.action().into_iter().flat_map(Action::parts);
            let mut found = [None; 3];
            parts.for_each(|(phase, chunk)| found[phase as usize] = Some(chunk.stage));
            stages == Some(found)
        };
        match items().find(|(.., item)| of_stages(item)).or_else(|| items().next()) {
            Some((rank, at, item)) => Self::item(rule, plan, rank, at, message).of(format!("{}, {action}", item.0)),
            None => Self::plan(rule, action, message),
        }
    }

    /// The same violation, told of another action.
    fn of(self, action: String) -> Self {
        Self { action, ..self }
    }

    /// Of something that belongs to no rank: the layout, a stage.
    pub(super) fn plan(rule: Rule, action: impl Into<String>, message: String) -> Self {
        Self { rule, rank: None, item: None, action: action.into(), message }
    }
}

impl fmt::Display for Violation {
    /// `rank 2, item 17, I(5,3): reads … [read-before-write]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rank) = self.rank {
            write!(f, "rank {rank}, ")?;
        }
        if let Some(item) = self.item {
            write!(f, "item {item}, ")?;
        }
        write!(f, "{}: {} [{}]", self.action, self.message, self.rule)
    }
}

/// How much was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Ranks of the plan.
    pub ranks: usize,
    /// Items of all ranks.
    pub items: usize,
    /// Chunk programs.
    pub programs: usize,
    /// Rules that were asked: all, or only the first if the plan is not well-formed.
    pub rules: usize,
}

/// The verdict on a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What is wrong, by rule, then in the order of the plan; at most [`LISTED`] of each rule.
    pub violations: Vec<Violation>,
    /// How many violations of each rule there are, those that are not listed included. Rules that hold are left out.
    pub counts: BTreeMap<Rule, u64>,
    /// How much was looked at.
    pub checked: Checked,
}

impl Report {
    /// Whether the plan keeps to every rule.
    pub fn is_safe(&self) -> bool {
        self.counts.is_empty()
    }

    /// Violations of all rules, those that are not listed included.
    pub fn total(&self) -> u64 {
        self.counts.values().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Violations of `rule` that are counted but not listed.
    pub fn unlisted(&self, rule: Rule) -> u64 {
        self.counts.get(&rule).map_or(0, |count| count.saturating_sub(LISTED))
    }

    /// Counts a violation, and lists it if its rule has room. A violation is only put into words when it is listed.
    pub(super) fn add(&mut self, rule: Rule, violation: impl FnOnce() -> Violation) {
        if self.count(rule, 1) {
            self.violations.push(violation());
        }
    }

    /// The same for `numbers.len()` violations, one for each number: a range of missing micro-batches may be long.
    pub(super) fn add_range(
        &mut self,
        rule: Rule,
        numbers: std::ops::Range<u32>,
        violation: impl Fn(u32) -> Violation,
    ) {
        for number in numbers.clone() {
            if !self.count(rule, 1) {
                self.count(rule, u64::from(numbers.end - number) - 1);
                return;
            }
            self.violations.push(violation(number));
        }
    }

    /// Whether the rule still had room in the list.
    fn count(&mut self, rule: Rule, more: u64) -> bool {
        if more == 0 {
            return false;
        }
        let count = self.counts.entry(rule).or_default();
        let room = *count < LISTED;
        *count = count.saturating_add(more);
        room
    }
}
