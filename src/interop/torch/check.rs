//! Whether a schedule is whole and comes to an end, and how long it takes.
//!
//! PyTorch has one queue of transfers between each two ranks, and their GPUs take from it in order: a transfer runs when both ranks have
//! come to it and all before it are done. So both must have the same transfers in the same order. A rank goes on behind a send or a receive,
//! and waits for a message only where it computes with it.

use std::collections::BTreeMap;

use super::{Cell, Compute, Message, Schedule, Work};
use crate::ir::{ChunkId, Phase};
use crate::passes::pipeline::MAX_CHUNKS;
use crate::units::Nanos;

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The place.
    pub site: Site,
    /// One sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// A place in a schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Site {
    /// The row.
    pub rank: usize,
    /// The cell of the row, from 0; `None`: something that is not there.
    pub cell: Option<usize>,
}

/// Which rank has which stage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owners {
    /// By stage.
    ranks: Vec<usize>,
}

impl Owners {
    /// Stages of the model.
    pub fn stages(&self) -> u32 {
        self.ranks.len() as u32
    }

    /// The rank of a stage.
    pub fn rank_of(&self, stage: u32) -> usize {
        self.ranks[stage as usize]
    }
}

/// When everything that is computed runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Times {
    /// By rank, for each of its computations in order: start and end.
    pub spans: Vec<Vec<(Nanos, Nanos)>>,
    /// End of the last one.
    pub makespan: Nanos,
}

/// That every chunk of `micro_batches` runs its F, and its B or its I and then its W, once, on the rank of its stage, with what it reads; and
/// in the form with communication that every message is sent and received once, in time and in one order on both ranks; that ranks have
/// parameters where they compute with them; and that gradients are reduced once, when all are there.
///
/// # Errors
/// The first thing that is not so.
pub fn check(schedule: &Schedule, micro_batches: u32) -> Result<Owners, Fault> {
    let owners = owners(schedule, micro_batches)?;
    let made = complete(schedule, &owners, micro_batches)?;
    time(schedule, &owners, &|_| Nanos::ZERO, Nanos::ZERO)?;
    if schedule.communicates() {
        transfers(schedule, &owners, &made)?;
        parameters(schedule, &owners, micro_batches)?;
    }
    Ok(owners)
}

fn fault(rank: usize, cell: usize, message: String) -> Fault {
    Fault { site: Site { rank, cell: Some(cell) }, message, help: None }
}

/// Every cell that is not empty, with its place.
fn cells(schedule: &Schedule) -> impl Iterator<Item = (usize, usize, Cell)> {
    schedule.rows.iter().enumerate().flat_map(|(rank, row)| {
        row.iter().enumerate().filter_map(move |(index, cell)| cell.map(|cell| (rank, index, cell)))
    })
}

fn owners(schedule: &Schedule, micro_batches: u32) -> Result<Owners, Fault> {
    let mut found: BTreeMap<u32, (usize, usize)> = BTreeMap::new();
    for (rank, index, cell) in cells(schedule) {
        for stage in cell.works().map(|work| work.chunk.stage) {
            let (other, _) = *found.entry(stage).or_insert((rank, index));
            if other != rank {
                return Err(fault(rank, index, format!("`{cell}`: stage {stage} is on rank {other}")));
            }
        }
    }
    let Some((&last, _)) = found.last_key_value() else {
        let site = Site { rank: 0, cell: None };
        return Err(Fault { site, message: "nothing is computed".to_owned(), help: None });
    };
    for (stage, (&named, &(rank, index))) in (0..).zip(&found) {
        let stage: u32 = stage;
        if named != stage {
            return Err(fault(rank, index, format!("stage {named}, but no rank has stage {stage}")));
        }
    }
    for (rank, index, cell) in cells(schedule) {
        for stage in cell.stages() {
            match found.get(&stage) {
                None => return Err(fault(rank, index, format!("`{cell}`: the last stage is {last}"))),
                Some(&(other, _)) if other != rank => {
                    return Err(fault(rank, index, format!("`{cell}`: stage {stage} is on rank {other}")));
                }
                Some(_) => {}
            }
        }
        let numbered = match cell {
            Cell::Send(message) | Cell::Receive(message) => Some(message.from.micro_batch),
            _ => None,
        };
        let numbers = cell.works().map(|work| work.chunk.micro_batch).chain(numbered);
        if let Some(number) = numbers.filter(|&number| number >= micro_batches).max() {
            let mut wrong = fault(rank, index, format!("`{cell}`: micro-batch {number} of {micro_batches}"));
            wrong.help = Some("they are counted from 0; `--micro-batches` is how many there are".to_owned());
            return Err(wrong);
        }
    }
    let ranks: Vec<usize> = found.into_values().map(|(rank, _)| rank).collect();
    if (ranks.len() as u64).saturating_mul(u64::from(micro_batches)) > MAX_CHUNKS {
        let site = Site { rank: 0, cell: None };
        let message = format!("{} stages and {micro_batches} micro-batches are too many", ranks.len());
        return Err(Fault { site, message, help: Some(format!("at most {MAX_CHUNKS} chunks are read")) });
    }
    Ok(Owners { ranks })
}

/// By chunk and phase: the cell.
struct Made {
    micro_batches: usize,
    cells: Vec<[Option<usize>; 3]>,
}

impl Made {
    fn at(&mut self, chunk: ChunkId, phase: Phase) -> &mut Option<usize> {
        &mut self.cells[chunk.stage as usize * self.micro_batches + chunk.micro_batch as usize][phase as usize]
    }

    fn of(&self, chunk: ChunkId, phase: Phase) -> Option<usize> {
        self.cells[chunk.stage as usize * self.micro_batches + chunk.micro_batch as usize][phase as usize]
    }
}

fn complete(schedule: &Schedule, owners: &Owners, micro_batches: u32) -> Result<Made, Fault> {
    let chunks = owners.ranks.len() * micro_batches as usize;
    let mut made = Made { micro_batches: micro_batches as usize, cells: vec![[None; 3]; chunks] };
    for (rank, index, cell) in cells(schedule) {
        for work in cell.works() {
            for &phase in work.phases() {
                let there = made.at(work.chunk, phase);
                if let Some(first) = *there {
                    let message = format!("`{cell}` does again what cell {} has done", first + 1);
                    return Err(fault(rank, index, message));
                }
                *there = Some(index);
            }
        }
    }
    for stage in 0..owners.stages() {
        for micro_batch in 0..micro_batches {
            let chunk = ChunkId { stage, micro_batch };
            let missing = [Phase::F, Phase::I, Phase::W].into_iter().find(|&phase| made.of(chunk, phase).is_none());
            if let Some(phase) = missing {
                let compute = match (phase, made.of(chunk, Phase::W)) {
                    (Phase::F, _) => Compute::F,
                    (Phase::I, None) => Compute::B,
                    (Phase::I, Some(_)) => Compute::I,
                    (Phase::W, _) => Compute::W,
                };
                let site = Site { rank: owners.rank_of(stage), cell: None };
                return Err(Fault { site, message: format!("`{}` is missing", Work { compute, chunk }), help: None });
            }
        }
    }
    Ok(made)
}

/// The chunk and phase that an action reads, if it reads one of another stage, and that of its own stage.
fn reads(work: Work, stages: u32) -> impl Iterator<Item = (ChunkId, Phase)> {
    let chunk = work.chunk;
    let (own, other) = match work.compute {
        Compute::F => (None, chunk.stage.checked_sub(1).map(|stage| (ChunkId { stage, ..chunk }, Phase::F))),
        Compute::B | Compute::I => {
            let behind = Some(chunk.stage + 1).filter(|&stage| stage < stages);
            (Some((chunk, Phase::F)), behind.map(|stage| (ChunkId { stage, ..chunk }, Phase::I)))
        }
        Compute::W => (Some((chunk, Phase::I)), None),
    };
    own.into_iter().chain(other)
}

/// Runs what is computed, every cell as soon as its rank is free and what it reads is there: messages between ranks take `hop`.
///
/// # Errors
/// If ranks wait for each other.
pub fn time(schedule: &Schedule, owners: &Owners, cost: &dyn Fn(Cell) -> Nanos, hop: Nanos) -> Result<Times, Fault> {
    let rows: Vec<Vec<(usize, Cell)>> = schedule.rows.iter().map(|row| computed(row)).collect();
    let mut ended: BTreeMap<(ChunkId, Phase), Nanos> = BTreeMap::new();
    let mut spans: Vec<Vec<(Nanos, Nanos)>> = vec![Vec::new(); rows.len()];
    // Who waits for what: at most one rank reads from another stage what is not there.
    let mut waiting: BTreeMap<(ChunkId, Phase), usize> = BTreeMap::new();
    let mut ready: Vec<usize> = (0..rows.len()).rev().collect();
    while let Some(rank) = ready.pop() {
        'row: while let Some(&(_, cell)) = rows[rank].get(spans[rank].len()) {
            let mut start = spans[rank].last().map_or(Nanos::ZERO, |&(_, end)| end);
            for (read, phase) in cell.works().flat_map(|work| reads(work, owners.stages())) {
                let Some(&end) = ended.get(&(read, phase)) else {
                    waiting.insert((read, phase), rank);
                    break 'row;
                };
                let away = if owners.rank_of(read.stage) == rank { Nanos::ZERO } else { hop };
                start = start.max(end + away);
            }
            let end = start + cost(cell);
            spans[rank].push((start, end));
            for work in cell.works() {
                for &phase in work.phases() {
                    ended.insert((work.chunk, phase), end);
                    ready.extend(waiting.remove(&(work.chunk, phase)).filter(|&other| other != rank));
                }
            }
        }
    }
    let stuck = rows.iter().zip(&spans).position(|(row, spans)| row.len() > spans.len());
    if let Some(rank) = stuck {
        return Err(cycle(&rows, &spans, owners, &ended, rank));
    }
    let makespan = spans.iter().filter_map(|spans| spans.last()).map(|&(_, end)| end).max().unwrap_or(Nanos::ZERO);
    Ok(Times { spans, makespan })
}

/// The cells of a row that compute, with their places.
fn computed(row: &[Option<Cell>]) -> Vec<(usize, Cell)> {
    let cells = row.iter().enumerate().filter_map(|(index, cell)| cell.map(|cell| (index, cell)));
    cells.filter(|(_, cell)| !cell.is_communication()).collect()
}

/// Says who waits for whom, from a rank that waits on.
fn cycle(
    rows: &[Vec<(usize, Cell)>],
    spans: &[Vec<(Nanos, Nanos)>],
    owners: &Owners,
    ended: &BTreeMap<(ChunkId, Phase), Nanos>,
    from: usize,
) -> Fault {
    let mut seen: Vec<usize> = Vec::new();
    let mut rank = from;
    loop {
        let (index, cell) = rows[rank][spans[rank].len()];
        let mut missing = cell.works().flat_map(|work| reads(work, owners.stages()));
        let missing = missing.find(|read| !ended.contains_key(read));
        // A rank that stands has something that it waits for.
        let Some((chunk, phase)) = missing else { return fault(rank, index, format!("`{cell}` never runs")) };
        let makes =
            |(_, cell): &&(usize, Cell)| cell.works().any(|work| work.chunk == chunk && work.phases().contains(&phase));
        let next = owners.rank_of(chunk.stage);
        let maker = rows[next].iter().find(makes).map_or_else(String::new, |(_, cell)| format!("`{cell}`"));
        if next == rank {
            return fault(rank, index, format!("`{cell}` reads what {maker} makes, which comes no sooner"));
        }
        if let Some(first) = seen.iter().position(|&other| other == next) {
            let standing = |rank: usize| rows[rank][spans[rank].len()].1;
            let round: Vec<String> = seen[first..]
                .iter()
                .chain([&rank])
                .map(|&rank| format!("rank {rank} at `{}`", standing(rank)))
                .collect();
            let message = format!("ranks wait for each other: {}, which waits for {maker}", round.join(", "));
            let (index, _) = rows[seen[first]][spans[seen[first]].len()];
            return fault(seen[first], index, message);
        }
        seen.push(rank);
        rank = next;
    }
}

/// The message that a chunk's F or I makes, if there is such a chunk and another rank reads it.
pub(super) fn message_of(work: Work, owners: &Owners) -> Option<Message> {
    let stage = work.chunk.stage;
    let gradient = match work.compute {
        Compute::F => false,
        Compute::B | Compute::I => true,
        Compute::W => return None,
    };
    let reader = if gradient { stage.checked_sub(1) } else { stage.checked_add(1) }?;
    if stage.max(reader) >= owners.stages() {
        return None;
    }
    (owners.rank_of(reader) != owners.rank_of(stage)).then_some(Message { gradient, from: work.chunk })
}

/// By pair of ranks, the smaller first, and by which of the two: its transfers in order, with their cells.
type Queues = BTreeMap<(usize, usize), [Vec<(usize, Message)>; 2]>;

/// Where a message is sent and where received.
type Ends = [Option<usize>; 2];

fn transfers(schedule: &Schedule, owners: &Owners, made: &Made) -> Result<(), Fault> {
    let mut ends: BTreeMap<Message, Ends> = BTreeMap::new();
    let mut queues = Queues::new();
    for (rank, index, cell) in cells(schedule) {
        let (message, side) = match cell {
            Cell::Send(message) => (message, 0),
            Cell::Receive(message) => (message, 1),
            _ => continue,
        };
        let compute = if message.gradient { Compute::I } else { Compute::F };
        if message_of(Work { compute, chunk: message.from }, owners) != Some(message) {
            return Err(fault(rank, index, format!("`{cell}`: no other rank has what it is for")));
        }
        let end = &mut ends.entry(message).or_default()[side];
        if let Some(first) = *end {
            return Err(fault(rank, index, format!("`{cell}` stands in cell {} already", first + 1)));
        }
        *end = Some(index);
        let (from, to) = (owners.rank_of(message.from.stage), owners.rank_of(message.to().stage));
        let pair = (from.min(to), from.max(to));
        queues.entry(pair).or_default()[usize::from(rank != pair.0)].push((index, message));
    }
    for (rank, index, cell) in cells(schedule) {
        for message in cell.works().filter_map(|work| message_of(work, owners)) {
            let [sent, received] = ends.get(&message).copied().unwrap_or_default();
            let (send, receive) = (Cell::Send(message), Cell::Receive(message));
            match sent {
                None => return Err(fault(rank, index, format!("`{cell}` is not followed by `{send}`"))),
                Some(sent) if sent < index => {
                    return Err(fault(
                        rank,
                        sent,
                        format!("`{send}` comes before `{cell}`, which makes what it sends"),
                    ));
                }
                Some(_) => {}
            }
            let (to, phase) = (message.to(), if message.gradient { Phase::I } else { Phase::F });
            // Everything is made somewhere.
            let (reader, at) = (owners.rank_of(to.stage), made.of(to, phase).unwrap_or_default());
            let reads = schedule.rows[reader][at].map_or_else(String::new, |cell| cell.to_string());
            match received {
                None => return Err(fault(reader, at, format!("`{reads}` reads what no `{receive}` has received"))),
                Some(received) if received > at => {
                    return Err(fault(reader, received, format!("`{receive}` comes behind `{reads}`, which reads it")));
                }
                Some(_) => {}
            }
        }
    }
    for (&(low, high), [one, other]) in &queues {
        // Every message has both ends, so both are as long.
        if let Some((mine, theirs)) = one.iter().zip(other).find(|(mine, theirs)| mine.1 != theirs.1) {
            let name =
                |rank: usize, index: usize| schedule.rows[rank][index].map_or_else(String::new, |c| c.to_string());
            let message = format!(
                "ranks {low} and {high} come to their transfers in different orders: `{}` here, `{}` on rank {low}",
                name(high, theirs.0),
                name(low, mine.0)
            );
            let mut wrong = fault(high, theirs.0, message);
            wrong.help = Some("both wait for the other one for ever, or take one message for another".to_owned());
            return Err(wrong);
        }
    }
    rendezvous(schedule, owners, &queues)
}

/// Runs all rows, with one queue for each two ranks.
fn rendezvous(schedule: &Schedule, owners: &Owners, queues: &Queues) -> Result<(), Fault> {
    let mut at = vec![0; schedule.rows.len()];
    // Per pair of ranks: how many transfers each has come to, and how many are done.
    let mut reached: BTreeMap<(usize, usize), [usize; 2]> = BTreeMap::new();
    let place: BTreeMap<Message, usize> = queues
        .values()
        .flat_map(|[one, _]| one.iter().enumerate().map(|(place, &(_, message))| (message, place)))
        .collect();
    let pair = |message: Message| {
        let (from, to) = (owners.rank_of(message.from.stage), owners.rank_of(message.to().stage));
        (from.min(to), from.max(to))
    };
    loop {
        let mut moved = false;
        for (rank, row) in schedule.rows.iter().enumerate() {
            while let Some(&cell) = row.get(at[rank]) {
                match cell {
                    Some(Cell::Send(message) | Cell::Receive(message)) => {
                        let pair = pair(message);
                        reached.entry(pair).or_default()[usize::from(rank != pair.0)] += 1;
                    }
                    Some(cell) => {
                        let arrived = |(read, phase): (ChunkId, Phase)| {
                            let message = Message { gradient: phase == Phase::I, from: read };
                            owners.rank_of(read.stage) == rank
                                || place.get(&message).is_some_and(|&place| {
                                    reached
                                        .get(&pair(message))
                                        .is_some_and(|both| both.iter().all(|&count| count > place))
                                })
                        };
                        if !cell.works().flat_map(|work| reads(work, owners.stages())).all(arrived) {
                            break;
                        }
                    }
                    None => {}
                }
                at[rank] += 1;
                moved = true;
            }
        }
        let stands = at.iter().zip(&schedule.rows).position(|(&at, row)| at < row.len());
        match (stands, moved) {
            (None, _) => return Ok(()),
            (Some(_), true) => {}
            (Some(rank), false) => {
                let name = schedule.rows[rank][at[rank]].map_or_else(String::new, |cell| cell.to_string());
                return Err(fault(
                    rank,
                    at[rank],
                    format!("`{name}` waits for a message that is never sent: ranks wait for each other"),
                ));
            }
        }
    }
}

/// FSDP's actions, and the reduction of gradients.
fn parameters(schedule: &Schedule, owners: &Owners, micro_batches: u32) -> Result<(), Fault> {
    let stages = owners.stages() as usize;
    let sharded: Vec<bool> = {
        let mut sharded = vec![false; stages];
        for (_, _, cell) in cells(schedule) {
            if let Cell::Unshard(stage) | Cell::Reshard(stage) = cell {
                sharded[stage as usize] = true;
            }
        }
        sharded
    };
    let (mut there, mut gradients, mut reduced) = (vec![false; stages], vec![0; stages], vec![false; stages]);
    for (rank, index, cell) in cells(schedule) {
        let wrong = |message: String| Err(fault(rank, index, message));
        match cell {
            Cell::Unshard(stage) if there[stage as usize] => {
                return wrong(format!("`{cell}`: its parameters are gathered already"));
            }
            Cell::Reshard(stage) if !there[stage as usize] => {
                return wrong(format!("`{cell}`: its parameters are not gathered"));
            }
            Cell::Unshard(stage) | Cell::Reshard(stage) => there[stage as usize] = matches!(cell, Cell::Unshard(_)),
            Cell::ReduceGrad(stage) => {
                if std::mem::replace(&mut reduced[stage as usize], true) {
                    return wrong(format!("`{cell}`: its gradients are reduced already"));
                }
                if gradients[stage as usize] < micro_batches {
                    return wrong(format!(
                        "`{cell}` comes before the gradients of {} of {micro_batches} micro-batches",
                        micro_batches - gradients[stage as usize]
                    ));
                }
            }
            _ => {}
        }
        for work in cell.works() {
            let stage = work.chunk.stage as usize;
            if sharded[stage] && !there[stage] {
                return wrong(format!("`{cell}`: the parameters of stage {stage} are not gathered"));
            }
            gradients[stage] += u32::from(work.phases().contains(&Phase::W));
        }
    }
    match reduced.iter().position(|&reduced| !reduced) {
        None => Ok(()),
        Some(stage) => Err(Fault {
            site: Site { rank: owners.ranks[stage], cell: None },
            message: format!("`{}` is missing", Cell::ReduceGrad(stage as u32)),
            help: Some("PyTorch scales the gradients of a stage there".to_owned()),
        }),
    }
}
