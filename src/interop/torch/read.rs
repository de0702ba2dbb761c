//! Reads a CSV file of a schedule, strictly: what is no action, or stands in no schedule of so many ranks and micro-batches, is an error
//! that names row and cell.

use std::ops::Range;

use super::check::{Fault, Owners, Site, check};
use super::{Cell, Compute, Message, Schedule, Work};
use crate::error::{Error, Result};
use crate::ir::ChunkId;
use crate::view::numbers::count;

/// A file that was read and is safe to run.
#[derive(Clone, Debug)]
pub struct File {
    /// What it has.
    pub schedule: Schedule,
    /// Who has which stage.
    pub owners: Owners,
}

/// The schedule of `ranks` pipeline ranks and `micro_batches` in the text of the file `name`.
///
/// # Errors
/// If it is none, or not safe to run ([`check`] says what that means). The error points at the cell.
pub fn read(name: &str, text: &str, ranks: u32, micro_batches: u32) -> Result<File> {
    let mut rows = Vec::new();
    let mut spans: Vec<Vec<Range<usize>>> = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        // What follows is in bytes of the file.
        let content = line.strip_suffix('\n').unwrap_or(line);
        let content = content.strip_suffix('\r').unwrap_or(content);
        let number = rows.len();
        if content.trim().is_empty() {
            return Err(Error::new(format!("row {} is blank: each rank has a row", number + 1)).at(
                name,
                text,
                start..start + content.len(),
                "this line",
            ));
        }
        if number == ranks as usize {
            return Err(Error::new(format!("a row {} for {ranks} ranks", number + 1))
                .help("`--pp` is how many ranks the schedule has")
                .at(name, text, start..start + content.len(), "this row"));
        }
        let (mut row, mut places) = (Vec::new(), Vec::new());
        let mut at = start;
        for field in content.split(',') {
            let span = at..at + field.len();
            at = span.end + 1;
            row.push(match field.trim() {
                "" => None,
                word => Some(cell(word).map_err(|why| {
                    let at = format!("row {}, cell {}", number + 1, row.len() + 1);
                    Error::new(format!("{at}: `{word}` is no action: {why}"))
                        .help("an action is a stage, what it does, and a micro-batch: `0F3`, `3I1`, `(0F2;7B1)OVERLAP_F_B`, `1RECV_F0`, `2UNSHARD`")
                        .at(name, text, span.clone(), "this cell")
                })?),
            });
            places.push(span);
        }
        rows.push(row);
        spans.push(places);
        start += line.len();
    }
    if rows.is_empty() || rows.len() != ranks as usize {
        return Err(Error::new(format!("{} for {ranks} ranks", count(rows.len() as u64, "row")))
            .help("`--pp` is how many ranks the schedule has")
            .at(name, text, text.len()..text.len(), "the file ends here"));
    }
    let schedule = Schedule { rows };
    let owners = check(&schedule, micro_batches).map_err(|fault| {
        let Fault { site, message, help } = fault;
        let Site { rank, cell } = site;
        let error = Error::new(match cell {
            Some(cell) => format!("row {}, cell {}: {message}", rank + 1, cell + 1),
            None => format!("row {}: {message}", rank + 1),
        });
        let error = match help {
            Some(help) => error.help(help),
            None => error,
        };
        let row = &spans[rank];
        let whole = || row.first().map_or(0, |span| span.start)..row.last().map_or(0, |span| span.end);
        let (span, label) = match cell {
            Some(cell) => (row[cell].clone(), "this cell"),
            None => (whole(), "this row"),
        };
        error.at(name, text, span, label)
    })?;
    Ok(File { schedule, owners })
}

/// The action of a cell.
fn cell(word: &str) -> Result<Cell, String> {
    if let Some(rest) = word.strip_prefix('(') {
        let inside = rest.strip_suffix(")OVERLAP_F_B").ok_or("what begins with `(` ends with `)OVERLAP_F_B`")?;
        let (forward, backward) = inside.split_once(';').ok_or("two actions with a `;` between them are overlapped")?;
        let (forward, backward) = (computation(forward)?, computation(backward)?);
        if forward.compute != Compute::F || !matches!(backward.compute, Compute::B | Compute::I) {
            return Err("a forward is overlapped with a backward, in this order".to_owned());
        }
        return Ok(Cell::Pair(forward, backward));
    }
    let (stage, rest) = number(word)?;
    let alone = |cell: Cell, rest: &str| match rest {
        "" => Ok(cell),
        _ => Err("it is of a stage, not of a micro-batch".to_owned()),
    };
    for (name, to) in
        [("UNSHARD", Cell::Unshard as fn(u32) -> Cell), ("RESHARD", Cell::Reshard), ("REDUCE_GRAD", Cell::ReduceGrad)]
    {
        if let Some(rest) = rest.strip_prefix(name) {
            return alone(to(stage), rest);
        }
    }
    for (name, gradient, sent) in
        [("SEND_F", false, true), ("SEND_B", true, true), ("RECV_F", false, false), ("RECV_B", true, false)]
    {
        let Some(rest) = rest.strip_prefix(name) else { continue };
        let micro_batch = last_number(rest)?;
        let neighbour = match (gradient, sent) {
            (true, true) | (false, false) => stage.checked_sub(1),
            (true, false) | (false, true) => stage.checked_add(1),
        };
        let neighbour = neighbour.ok_or("there is no stage before the first")?;
        let from = ChunkId::new(if sent { stage } else { neighbour }, micro_batch);
        let message = Message { gradient, from };
        return Ok(if sent { Cell::Send(message) } else { Cell::Receive(message) });
    }
    computation(word).map(Cell::Work)
}

/// `3F7`.
fn computation(word: &str) -> Result<Work, String> {
    let (stage, rest) = number(word)?;
    let mut letters = rest.chars();
    let compute = match letters.next() {
        Some('F') => Compute::F,
        Some('B') => Compute::B,
        Some('I') => Compute::I,
        Some('W') => Compute::W,
        _ => return Err("behind the stage stands what it does".to_owned()),
    };
    Ok(Work { compute, chunk: ChunkId::new(stage, last_number(letters.as_str())?) })
}

/// The digits that a word begins with, and what follows.
fn number(word: &str) -> Result<(u32, &str), String> {
    let end = word.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(word.len());
    let (digits, rest) = word.split_at(end);
    match digits.parse() {
        Ok(number) => Ok((number, rest)),
        Err(_) if digits.is_empty() => Err("a number is missing".to_owned()),
        Err(_) => Err(format!("{digits} is too large a number")),
    }
}

/// A number, and nothing else.
fn last_number(word: &str) -> Result<u32, String> {
    match number(word)? {
        (number, "") => Ok(number),
        (_, rest) => Err(format!("`{rest}` follows the micro-batch")),
    }
}
