//! Rule `deadlock`: no items wait for each other in a circle, over all ranks.
//!
//! An item waits for the one before it on its stream and for those in its `after`. Items that meet start together, so they
//! are one node of the graph; that every stage is reduced, for which every `Update` waits, is a node too. If it has no cycle,
//! then at every moment some item that has not ended can run.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::plan::{Plan, StreamId, Task};

use super::rendezvous::At;
use super::report::{Report, Rule, Violation};

/// Steps of a circle that a message names.
const NAMED: usize = 16;

/// Checks the whole plan; `met` are the pairs of items that meet. One circle is reported, a short one.
pub fn check(plan: &Plan, met: &[(At, At)], report: &mut Report) {
    let graph = Graph::new(plan, met);
    let stuck = graph.stuck();
    let mut circle = graph.circle(&stuck);
    // It is told from an item.
    if circle.first().is_some_and(|&(waiting, _)| waiting == graph.all_reduced) {
        circle.rotate_left(1);
    }
    let (Some(&(first, _)), Some(&(_, last))) = (circle.first(), circle.last()) else { return };
    let name = |item: usize| {
        if item == graph.all_reduced {
            return "the reduction of all stages".to_owned();
        }
        let (rank, index) = graph.at(item);
        format!("{} (rank {rank}, item {index})", plan.ranks[rank as usize].items[index].0)
    };
    report.add(Rule::Deadlock, || {
        let mut text = String::from("waits in a circle");
        let mut reached = first;
        for &(waiting, awaited) in circle.iter().take(NAMED) {
            if waiting != reached {
                text.push_str(&format!(", which meets {}", name(waiting)));
            }
            let joint = if waiting == first { ":" } else { ", which waits" };
            text.push_str(&format!("{joint} for {}", name(awaited)));
            reached = awaited;
        }
        match circle.len().checked_sub(NAMED) {
            Some(more) if more > 0 => text.push_str(&format!(", and so on over {more} more items")),
            _ if last != first => text.push_str(", which meets this item"),
            _ => {}
        }
        let never = graph.node[..graph.all_reduced].iter().filter(|&&node| stuck[node]).count();
        text.push_str(&format!("; {never} items never start"));
        let (rank, item) = graph.at(first);
        Violation::item(Rule::Deadlock, plan, rank, item, text)
    });
}

/// Items of all ranks, numbered through, and behind them that all stages are reduced. Items that meet share a node: the smallest of
/// their numbers.
struct Graph {
    /// The number that comes behind the items': it waits for each `ReduceGrads`.
    all_reduced: usize,
    /// Number of each rank's first item.
    first: Vec<usize>,
    /// Node of each item.
    node: Vec<usize>,
    /// Of each node: (item that waits, item that it waits for).
    waits: Lists<(usize, usize)>,
}

/// Many lists, one behind the other: list n is `all[start[n]..start[n + 1]]`.
struct Lists<T> {
    start: Vec<usize>,
    all: Vec<T>,
}

impl<T: Copy + Default> Lists<T> {
    /// Of (list, entry); each list keeps the order.
    fn new(count: usize, entries: impl Iterator<Item = (usize, T)> + Clone) -> Self {
        let mut start = vec![0; count + 1];
        for (list, _) in entries.clone() {
            start[list + 1] += 1;
        }
        for list in 0..count {
            start[list + 1] += start[list];
        }
        let mut end = start.clone();
        let mut all = vec![T::default(); start[count]];
        for (list, entry) in entries {
            all[end[list]] = entry;
            end[list] += 1;
        }
        Self { start, all }
    }

    fn get(&self, list: usize) -> &[T] {
        &self.all[self.start[list]..self.start[list + 1]]
    }
}

impl Graph {
    fn new(plan: &Plan, met: &[(At, At)]) -> Self {
        let mut first = Vec::with_capacity(plan.ranks.len());
        let mut items = 0;
        for rank in &plan.ranks {
            first.push(items);
            items += rank.items.len();
        }
        let mut node: Vec<usize> = (0..=items).collect();
        for &(a, b) in met {
            let number = |(rank, item): At| first[rank as usize] + item;
            // Every item meets only items whose pairs come with the same first one.
            let (a, b) = (number(a), number(b));
            let least = node[a].min(node[b]);
            node[a] = least;
            node[b] = least;
        }
        let mut waits = Vec::new();
        for ((rank_number, rank), &first) in (0..).zip(&plan.ranks).zip(&first) {
            // What is reduced twice, or elsewhere, is `completeness`'s to report.
            let mut reduced: BTreeSet<u32> = BTreeSet::new();
            let mut counts = |stage| plan.layout.holders(stage).contains(&rank_number) && reduced.insert(stage);
            let mut last: BTreeMap<StreamId, usize> = BTreeMap::new();
            for (number, item) in (first..).zip(&rank.items) {
                waits.extend(last.insert(item.0.stream(), number).map(|before| (number, before)));
                waits.extend(item.1.iter().map(|&after| (number, first + after as usize)));
                match item.0 {
                    Task::ReduceGrads(stage) if counts(stage) => waits.push((items, number)),
                    Task::Update(_) => waits.push((number, items)),
                    _ => {}
                }
            }
        }
        let waits = Lists::new(items + 1, waits.iter().map(|&wait: &(usize, usize)| (node[wait.0], wait)));
        Self { all_reduced: items, first, node, waits }
    }

    /// Rank and index of an item.
    fn at(&self, item: usize) -> At {
        let rank = self.first.partition_point(|&first| first <= item).saturating_sub(1);
        (rank as u32, item - self.first[rank])
    }

    /// For each node, whether it can never start. Peels off what can, over and over.
    fn stuck(&self) -> Vec<bool> {
        let nodes = self.node.len();
        let edges = self.waits.all.iter();
        let awaited_by = Lists::new(nodes, edges.map(|&(waiting, awaited)| (self.node[awaited], self.node[waiting])));
        let mut open: Vec<usize> = (0..nodes).map(|node| self.waits.get(node).len()).collect();
        let mut ready: Vec<usize> = (0..nodes).filter(|&node| open[node] == 0).collect();
        while let Some(node) = ready.pop() {
            for &next in awaited_by.get(node) {
                open[next] -= 1;
                if open[next] == 0 {
                    ready.push(next);
                }
            }
        }
        open.into_iter().map(|open| open > 0).collect()
    }

    /// A shortest circle through some stuck node that is on one: its waits, each beginning in the node where the one before
    /// ended. Empty if nothing is stuck.
    fn circle(&self, stuck: &[bool]) -> Vec<(usize, usize)> {
        let step = |node: usize| self.waits.get(node).iter().copied().filter(|&(_, awaited)| stuck[self.node[awaited]]);
        // What is stuck waits for something stuck: going on must come back.
        let Some(mut on) = stuck.iter().position(|&stuck| stuck) else { return Vec::new() };
        let mut visited = vec![false; stuck.len()];
        while !visited[on] {
            visited[on] = true;
            let Some((_, awaited)) = step(on).next() else { return Vec::new() };
            on = self.node[awaited];
        }
        // Breadth first from there, until it is reached again.
        let mut reached_by: Vec<Option<(usize, usize)>> = vec![None; stuck.len()];
        let mut queue = VecDeque::from([on]);
        while let Some(node) = queue.pop_front() {
            for wait in step(node) {
                let next = self.node[wait.1];
                if reached_by[next].is_none() {
                    reached_by[next] = Some(wait);
                    queue.push_back(next);
                }
                if next == on {
                    let mut circle = Vec::new();
                    let mut back = on;
                    while let Some(wait) = reached_by[back] {
                        circle.push(wait);
                        back = self.node[wait.0];
                        if back == on {
                            break;
                        }
                    }
                    circle.reverse();
                    return circle;
                }
            }
        }
        Vec::new()
    }
}
