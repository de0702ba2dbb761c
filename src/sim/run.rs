//! The event loop: an item starts when all that it waits for has ended. No two items compete for anything, so one pass
//! over the items in the order of their readiness gives all times, in time linear in their number.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::meeting::{ItemId, Meeting};
use super::program::ProgramTiming;
use super::{Span, computes};
use crate::error::{Error, Result};
use crate::plan::{Plan, Task};
use crate::units::Nanos;

/// Items of a deadlock that its message names.
const NAMED_IN_DEADLOCK: usize = 8;

pub(super) struct Input<'a> {
    pub programs: &'a [ProgramTiming],
    /// By rank and item.
    pub program_of: &'a [Vec<Option<u32>>],
    pub meetings: &'a [Meeting],
}

/// Times, and what decided them.
pub(super) struct Run {
    /// By rank and item.
    pub spans: Vec<Vec<Span>>,
    /// By rank and item: the compute item whose end this item's start goes back to, without other compute items in
    /// between. `None` if it goes back to the start of the step.
    pub origins: Vec<Vec<Option<Origin>>>,
}

/// The compute item that others waited for.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub item: ItemId,
    /// The item that could start when it ended: a send, receive, collective, or the waiting item itself.
    pub released: Task,
}

pub(super) fn run(plan: &Plan, input: &Input) -> Result<Run> {
    let graph = Graph::new(plan, input.meetings);
    let durations = graph.durations(plan, input);
    let times = times(&graph, input.meetings, &durations)?;
    Ok(Run { spans: graph.by_rank(plan, &times.spans), origins: graph.by_rank(plan, &times.origins) })
}

/// What [`Run`] has, by number of the item.
pub(super) struct Times {
    pub spans: Vec<Span>,
    origins: Vec<Option<Origin>>,
}

/// When items run that take so long: those that meet as long as the leader.
pub(super) fn times(graph: &Graph, meetings: &[Meeting], durations: &[Nanos]) -> Result<Times> {
    let count = graph.leader.len();
    let mut spans = vec![Span::default(); count];
    let mut origins: Vec<Option<Origin>> = vec![None; count];
    let mut last: Vec<Option<usize>> = vec![None; count];
    let mut ready = vec![Nanos::ZERO; count];
    let mut pending = graph.pending();
    let mut ended = vec![false; count];
    let mut queue: Vec<usize> = (0..count).filter(|&i| graph.leader[i] == i && pending[i] == 0).rev().collect();

    while let Some(leader) = queue.pop() {
        let members = graph.members(leader, meetings);
        // The member that came last decides; among equals the first.
        let late = members.iter().copied().rev().max_by_key(|&member| ready[member]).unwrap_or(leader);
        let span = Span { start: ready[late], end: ready[late] + durations[leader] };
        let origin = last[late].and_then(|before| match (graph.item(before), graph.item(late)) {
            (Some((item, task)), Some((_, released))) if computes(task) => Some(Origin { item, released }),
            _ => origins[before],
        });
        for &member in &members {
            (spans[member], origins[member], ended[member]) = (span, origin, true);
            for &next in graph.next.of(member) {
                // Of several that end together the first in the plan decides.
                let decides = last[next].is_none_or(|l| (span.end, l) > (ready[next], member));
                if span.end >= ready[next] && decides {
                    (ready[next], last[next]) = (span.end, Some(member));
                }
                let leader = graph.leader[next];
                pending[leader] -= 1;
                if pending[leader] == 0 {
                    queue.push(leader);
                }
            }
        }
    }
    match ended.iter().position(|ended| !ended) {
        Some(stuck) => Err(deadlock(graph, meetings, &ended, stuck)),
        None => Ok(Times { spans, origins }),
    }
}

/// Duration of an item that meets nobody.
fn solo_duration(plan: &Plan, input: &Input, (rank, item): ItemId, task: Task) -> Nanos {
    match (input.program_of[rank as usize][item as usize], task) {
        (Some(program), _) => input.programs[program as usize].total,
        (None, Task::Update(stage)) => plan.machine.duration(&plan.stages[stage as usize].update, plan.machine.sms),
        _ => Nanos::ZERO,
    }
}

/// Items of all ranks, numbered through, and who waits for whom. The number behind the last item's is that all stages are reduced: that
/// takes no time, waits for each `ReduceGrads`, and each `Update` waits for it.
pub(super) struct Graph {
    /// Of each item, its place and what it does.
    items: Vec<(ItemId, Task)>,
    /// What an item waits for: the one before it on its stream, those that it names, and that all stages are reduced.
    before: Lists,
    /// The same, turned around.
    next: Lists,
    /// Which meeting the item takes part in.
    meeting: Vec<Option<u32>>,
    /// First member of the item's meeting; itself if it meets nobody.
    leader: Vec<usize>,
    /// Number of each rank's first item.
    offsets: Vec<usize>,
}

impl Graph {
    pub(super) fn new(plan: &Plan, meetings: &[Meeting]) -> Self {
        let (mut items, mut offsets) = (Vec::new(), Vec::new());
        let mut edges: Vec<(usize, usize)> = Vec::new();
        let all_reduced = plan.ranks.iter().map(|rank| rank.items.len()).sum();
        for (rank, list) in (0..).zip(&plan.ranks) {
            let offset = items.len();
            offsets.push(offset);
            let mut last_on = BTreeMap::new();
            for (item, entry) in (0..).zip(&list.items) {
                let number = items.len();
                if let Some(before) = last_on.insert(entry.0.stream(), number) {
                    edges.push((before, number));
                }
                edges.extend(entry.1.iter().map(|&wait| (offset + wait as usize, number)));
                match entry.0 {
                    Task::ReduceGrads(_) => edges.push((number, all_reduced)),
                    Task::Update(_) => edges.push((all_reduced, number)),
                    _ => {}
                }
                items.push(((rank, item), entry.0));
            }
        }
        let count = all_reduced + 1;
        let mut graph = Self {
            before: Lists::new(count, edges.iter().map(|&(from, to)| (to, from))),
            next: Lists::new(count, edges.iter().copied()),
            meeting: vec![None; count],
            leader: (0..count).collect(),
            items,
            offsets,
        };
        for (number, meeting) in (0..).zip(meetings) {
            let members: Vec<usize> = meeting.members.iter().map(|&id| graph.number(id)).collect();
            for &member in &members {
                (graph.meeting[member], graph.leader[member]) = (Some(number), members[0]);
            }
        }
        graph
    }

    /// How long items take, by their numbers.
    pub(super) fn durations(&self, plan: &Plan, input: &Input) -> Vec<Nanos> {
        let of = |number: usize| match (self.meeting[number], self.item(number)) {
            (Some(meeting), _) => input.meetings[meeting as usize].duration,
            (None, Some((id, task))) => solo_duration(plan, input, id, task),
            (None, None) => Nanos::ZERO,
        };
        (0..self.leader.len()).map(of).collect()
    }

    /// Those that others wait for where they meet, and those that meet nobody: each with its task.
    pub(super) fn leaders(&self) -> impl Iterator<Item = (usize, ItemId, Task)> + '_ {
        let numbered = self.items.iter().enumerate();
        numbered.filter(|(number, _)| self.leader[*number] == *number).map(|(number, &(id, task))| (number, id, task))
    }

    /// Place and task of an item; `None`: the number is that all stages are reduced.
    fn item(&self, number: usize) -> Option<(ItemId, Task)> {
        self.items.get(number).copied()
    }

    fn number(&self, (rank, item): ItemId) -> usize {
        self.offsets[rank as usize] + item as usize
    }

    /// For each leader, how many waits of its members are open.
    fn pending(&self) -> Vec<usize> {
        let mut pending = vec![0; self.leader.len()];
        for item in 0..self.leader.len() {
            pending[self.leader[item]] += self.before.of(item).len();
        }
        pending
    }

    fn members(&self, item: usize, meetings: &[Meeting]) -> Vec<usize> {
        match self.meeting[item] {
            Some(number) => meetings[number as usize].members.iter().map(|&id| self.number(id)).collect(),
            None => vec![item],
        }
    }

    fn by_rank<T: Clone>(&self, plan: &Plan, values: &[T]) -> Vec<Vec<T>> {
        let ranks = self.offsets.iter().zip(&plan.ranks);
        ranks.map(|(&offset, list)| values[offset..offset + list.items.len()].to_vec()).collect()
    }

    fn name(&self, item: usize) -> String {
        match self.item(item) {
            Some(((rank, index), task)) => format!("rank {rank}, item {index}, {task}"),
            None => "the reduction of all stages".to_owned(),
        }
    }
}

/// A list of numbers for each item, all in one piece of memory.
struct Lists {
    starts: Vec<usize>,
    values: Vec<usize>,
}

impl Lists {
    fn new(count: usize, edges: impl Iterator<Item = (usize, usize)> + Clone) -> Self {
        let mut starts = vec![0; count + 1];
        for (from, _) in edges.clone() {
            starts[from + 1] += 1;
        }
        for at in 0..count {
            starts[at + 1] += starts[at];
        }
        let mut free = starts.clone();
        let mut values = vec![0; starts[count]];
        for (from, to) in edges {
            values[free[from]] = to;
            free[from] += 1;
        }
        Self { starts, values }
    }

    fn of(&self, item: usize) -> &[usize] {
        &self.values[self.starts[item]..self.starts[item + 1]]
    }
}

/// Names a circle of items that wait for each other. Each item that has not ended waits for one that has not ended, or
/// its partner does; so from any of them the circle is reached by following.
fn deadlock(graph: &Graph, meetings: &[Meeting], ended: &[bool], stuck: usize) -> Error {
    // One step: from an item to the member of its meeting that waits, and what that waits for.
    let step = |item: usize| {
        let mut members = graph.members(item, meetings);
        members.sort_by_key(|&member| member != item);
        members.into_iter().find_map(|member| {
            let open = graph.before.of(member).iter().copied().find(|&before| !ended[before]);
            open.map(|before| (member, before))
        })
    };
    // An item may be entered twice, once by each side of its meeting; leaders tell.
    let mut visited = vec![false; graph.leader.len()];
    let mut at = stuck;
    while !visited[graph.leader[at]] {
        visited[graph.leader[at]] = true;
        match step(at) {
            Some((_, before)) => at = before,
            None => break,
        }
    }
    let (start, mut text, mut named) = (at, graph.name(at), 0);
    while let Some((member, before)) = step(at) {
        if member != at {
            let _ = write!(text, ", which meets {}", graph.name(member));
        }
        at = before;
        named += 1;
        if graph.leader[at] == graph.leader[start] {
            let _ = write!(text, ", which waits for {}", if at == start { "the first".into() } else { graph.name(at) });
            break;
        }
        if named == NAMED_IN_DEADLOCK {
            text.push_str(", and so on in a circle");
            break;
        }
        let _ = write!(text, ", which waits for {}", graph.name(at));
    }
    Error::new(format!("the plan deadlocks: {text}")).help("`dualweave verify` says all that is wrong with a plan")
}
