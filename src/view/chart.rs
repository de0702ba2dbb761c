//! A timetable as a chart for the terminal: one line per rank, time to the right, a letter for each kind of action.
//!
//! The text alone says everything; colours only repeat it, so it survives being piped (the writer drops the codes).

use std::collections::BTreeSet;

use anstyle::{Ansi256Color, Style};

use crate::ir::{Action, ChunkId, Layout};
use crate::units::Nanos;

/// A rank's line. Row k of a chart is rank k.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Written before the line.
    pub label: String,
    /// What the rank runs; in any order, without overlap.
    pub bars: Vec<Bar>,
}

/// An action in time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bar {
    /// From here,
    pub start: Nanos,
    /// to here.
    pub end: Nanos,
    /// Gives colour and letter.
    pub action: Action,
    /// Written into the bar where there is room; else the letter alone is.
    pub text: String,
}

impl Bar {
    /// An action of `rank`, with its usual text: the letter, in lower case on the rank's second pass, and the micro-batch, counted
    /// anew in each direction: `F7b3` is forward 7 overlapped with backward 3 of the second pass.
    pub fn new(layout: &Layout, rank: u32, action: Action, start: Nanos, end: Nanos) -> Self {
        let number = |chunk: ChunkId| match layout.direction(chunk.micro_batch) {
            0 => chunk.micro_batch,
            _ => chunk.micro_batch - (layout.micro_batches - layout.micro_batches / 2),
        };
        let pass = |chunk| is_second_pass(chunk, rank, layout.ranks);
        let part = |letter, chunk| format!("{}{}", cased(letter, pass(chunk)), number(chunk));
        let text = match action {
            Action::FB(f, b) => part('F', f) + &part('B', b),
            Action::F(c) | Action::B(c) | Action::I(c) | Action::W(c) => part(Kind::of(action).letter(), c),
        };
        Self { start, end, action, text }
    }
}

/// What the time axis counts in: 10^`places` nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Power of ten.
    pub places: u32,
    /// Name of the unit; may be empty.
    pub unit: &'static str,
}

impl Axis {
    /// The unit in which `makespan` is a number of a few digits.
    pub fn of(makespan: Nanos) -> Self {
        let (places, unit) = match makespan.0 {
            0..10_000 => (0, "ns"),
            10_000..10_000_000 => (3, "µs"),
            10_000_000..10_000_000_000 => (6, "ms"),
            _ => (9, "s"),
        };
        Self { places, unit }
    }

    /// A time in this unit, exact, without its name.
    pub fn number(self, time: Nanos) -> String {
        let places = self.places as usize;
        let digits = format!("{:0>width$}", time.0, width = places + 1);
        let (whole, part) = digits.split_at(digits.len() - places);
        match part.trim_end_matches('0') {
            "" => whole.to_owned(),
            part => format!("{whole}.{part}"),
        }
    }

    /// A time in this unit as a JSON number: whole, or the double nearest to the decimal.
    pub fn json(self, time: Nanos) -> serde_json::Number {
        let one = 10_u64.pow(self.places);
        if time.0.is_multiple_of(one) {
            return (time.0 / one).into();
        }
        // Of times below 2^53 both operands are exact, so the quotient is the nearest double and prints as the decimal.
        serde_json::Number::from_f64(time.as_f64() / one as f64).unwrap_or_else(|| 0.into())
    }
}

/// The chart, at most `width` columns wide (and at least 40), with a time axis and a legend; lines end in `\n`.
///
/// Where a column covers several actions, it shows the kind that fills most of it.
pub fn render(rows: &[Row], makespan: Nanos, width: usize) -> String {
    render_on(rows, makespan, width, Axis::of(makespan))
}

/// [`render`], with a time axis of one's own.
pub fn render_on(rows: &[Row], makespan: Nanos, width: usize, axis: Axis) -> String {
    let margin = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0) + 1;
    let scale = Scale::new(rows, makespan, width.max(40).saturating_sub(margin).max(20));
    let mut text = String::new();
    let mut drawn = Drawn::default();
    for (rank, row) in (0..).zip(rows) {
        text.push_str(&format!("{:>width$} ", row.label, width = margin - 1));
        text.push_str(&line(row, rank, rows.len() as u32, scale, &mut drawn));
        text.push('\n');
    }
    text.push_str(&ruler(scale, margin, axis));
    text.push_str(&legend(&drawn, margin, width.max(40)));
    text
}

/// How time becomes columns.
#[derive(Clone, Copy)]
struct Scale {
    makespan: u64,
    columns: usize,
}

/// A slot wider than this only pulls the chart apart.
const WIDEST_SLOT: u64 = 4;

impl Scale {
    /// If all times are whole slots and these fit, each slot gets the same number of columns.
    fn new(rows: &[Row], makespan: Nanos, available: usize) -> Self {
        let times = rows.iter().flat_map(|row| &row.bars).flat_map(|bar| [bar.start.0, bar.end.0]);
        let slot = times.fold(makespan.0, gcd).max(1);
        let slots = (makespan.0 / slot).max(1);
        let columns = match available as u64 / slots {
            0 => available,
            // At most `available`.
            per_slot => (slots * per_slot.min(WIDEST_SLOT)) as usize,
        };
        Self { makespan: makespan.0.max(1), columns }
    }

    /// The column that `time` falls into.
    fn column(self, time: u64) -> usize {
        (u128::from(time) * self.columns as u128 / u128::from(self.makespan)) as usize
    }

    /// How much of `bar` lies in `column`, in makespan / columns / makespan.
    fn overlap(self, bar: &Bar, column: usize) -> u128 {
        let (columns, makespan) = (self.columns as u128, u128::from(self.makespan));
        let (left, right) = (column as u128 * makespan, (column as u128 + 1) * makespan);
        let (start, end) = (u128::from(bar.start.0) * columns, u128::from(bar.end.0) * columns);
        end.min(right).saturating_sub(start.max(left))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Of the line that fills a bar behind its text.
const FAINT: Ansi256Color = Ansi256Color(243);

/// The five kinds of action.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    F,
    I,
    W,
    B,
    Pair,
}

impl Kind {
    fn of(action: Action) -> Self {
        match action {
            Action::F(_) => Self::F,
            Action::I(_) => Self::I,
            Action::W(_) => Self::W,
            Action::B(_) => Self::B,
            Action::FB(..) => Self::Pair,
        }
    }

    fn letter(self) -> char {
        match self {
            Self::F => 'F',
            Self::I => 'I',
            Self::W => 'W',
            Self::B => 'B',
            Self::Pair => 'X',
        }
    }

    fn meaning(self) -> &'static str {
        match self {
            Self::F => "forward",
            Self::I => "input gradient",
            Self::W => "weight gradient",
            Self::B => "full backward",
            Self::Pair => "F and B overlapped",
        }
    }

    /// Black on a light tone; on a deeper one in the second pass.
    fn style(self, second: bool) -> Style {
        let (light, deep) = match self {
            Self::F => (153, 75),
            Self::I => (158, 79),
            Self::W => (229, 186),
            Self::B => (219, 176),
            Self::Pair => (216, 209),
        };
        let ground = Ansi256Color(if second { deep } else { light });
        Style::new().fg_color(Some(Ansi256Color(16).into())).bg_color(Some(ground.into()))
    }
}

/// Whether a chunk is of a pass through the rank other than its first (of every other one, if there are many): the way
/// back of a V, direction 1 of a bidirectional pipeline, the second stage of a loop.
fn is_second_pass(chunk: ChunkId, rank: u32, ranks: u32) -> bool {
    match chunk.stage.checked_sub(rank) {
        Some(further) if further % ranks.max(1) == 0 => (further / ranks.max(1)) % 2 == 1,
        _ => true,
    }
}

fn cased(letter: char, second: bool) -> char {
    if second { letter.to_ascii_lowercase() } else { letter }
}

/// The chunk whose pass sets the shade: for a pair that of the forward.
fn chunk_of(action: Action) -> ChunkId {
    match action {
        Action::F(c) | Action::I(c) | Action::W(c) | Action::B(c) | Action::FB(c, _) => c,
    }
}

/// What fills a column, as far as is known.
#[derive(Clone, Copy)]
struct Share {
    kind: Kind,
    /// Time of this kind in the column, over all bars.
    time: u128,
    /// The bar that has most of it, and how much.
    bar: (usize, u128),
}

/// What a chart turned out to show, for its legend.
#[derive(Default)]
struct Drawn {
    kinds: BTreeSet<Kind>,
    second_pass: bool,
}

/// A rank's line, with colour codes.
fn line(row: &Row, rank: u32, ranks: u32, scale: Scale, drawn: &mut Drawn) -> String {
    let mut text = String::new();
    let owners = owners(row, scale);
    let mut at = 0;
    while at < scale.columns {
        let owner = owners[at].map(|share| share.bar.0);
        let run = owners[at..].iter().take_while(|share| share.map(|share| share.bar.0) == owner).count();
        match owners[at] {
            None => {
                let dim = Style::new().dimmed();
                text.push_str(&format!("{dim}{}{dim:#}", ".".repeat(run)));
            }
            Some(Share { kind, bar: (bar, most), .. }) => {
                // A column that no bar has half of is of both passes.
                let mixed = 2 * most < u128::from(scale.makespan);
                let bar = &row.bars[bar];
                let second = !mixed && is_second_pass(chunk_of(bar.action), rank, ranks);
                drawn.kinds.insert(kind);
                drawn.second_pass |= second;
                let style = kind.style(second);
                let caption = match mixed {
                    true => kind.letter().to_string(),
                    false => caption(bar, rank, ranks, run),
                };
                text.push_str(&format!("{style}{caption}"));
                let rest = run - caption.chars().count();
                if rest > 0 {
                    text.push_str(&format!("{}{}", Style::new().fg_color(Some(FAINT.into())), "─".repeat(rest)));
                }
                text.push_str(&format!("{style:#}"));
            }
        }
        at += run;
    }
    text
}

/// For each column what fills most of it: `None` is idle.
fn owners(row: &Row, scale: Scale) -> Vec<Option<Share>> {
    let mut shares: Vec<Vec<Share>> = vec![Vec::new(); scale.columns];
    for (index, bar) in row.bars.iter().enumerate() {
        let kind = Kind::of(bar.action);
        let [first, last] = [bar.start, bar.end].map(|time| scale.column(time.0).min(scale.columns - 1));
        for (column, shares) in (first..).zip(&mut shares[first..=last.max(first)]) {
            let time = scale.overlap(bar, column);
            match shares.iter_mut().find(|share| share.kind == kind) {
                _ if time == 0 => {}
                None => shares.push(Share { kind, time, bar: (index, time) }),
                Some(share) => {
                    share.time += time;
                    if time > share.bar.1 {
                        share.bar = (index, time);
                    }
                }
            }
        }
    }
    let largest = |shares: Vec<Share>| {
        let busy: u128 = shares.iter().map(|share| share.time).sum();
        let idle = u128::from(scale.makespan).saturating_sub(busy);
        // Of equals the earlier.
        let most = shares.into_iter().reduce(|most, next| if next.time > most.time { next } else { most })?;
        (most.time >= idle).then_some(most)
    };
    shares.into_iter().map(largest).collect()
}

/// The longest text for a bar that fits `room` columns.
fn caption(bar: &Bar, rank: u32, ranks: u32, room: usize) -> String {
    let pass = |chunk| is_second_pass(chunk, rank, ranks);
    let letter = Kind::of(bar.action).letter();
    match bar.action {
        _ if bar.text.chars().count() <= room => bar.text.clone(),
        Action::FB(f, b) if room >= 2 => [cased('F', pass(f)), cased('B', pass(b))].iter().collect(),
        action => cased(letter, pass(chunk_of(action))).to_string(),
    }
}

/// The time axis: a line with ticks and one with their times.
fn ruler(scale: Scale, margin: usize, axis: Axis) -> String {
    let makespan = Nanos(scale.makespan);
    let end = match axis.unit {
        "" => axis.number(makespan),
        unit => format!("{} {unit}", axis.number(makespan)),
    };
    let step = tick_step(scale, axis.number(makespan).len() + 3);
    let mut ticks = vec!['─'; scale.columns];
    let mut labels: Vec<char> = Vec::new();
    for time in (0..).map_while(|k: u64| step.checked_mul(k).filter(|&time| time < scale.makespan)) {
        let column = scale.column(time);
        let label = axis.number(Nanos(time));
        // The last tick gives way to the makespan.
        if column + label.len() + 2 <= scale.columns.saturating_sub(end.chars().count()) {
            labels.resize(column, ' ');
            labels.extend(label.chars());
        }
        ticks[column] = '┬';
    }
    if let Some(last) = ticks.last_mut() {
        *last = '┤';
    }
    ticks[0] = '├';
    labels.resize(scale.columns.saturating_sub(end.chars().count()).max(labels.len() + 1), ' ');
    labels.extend(end.chars());
    let margin = " ".repeat(margin);
    format!("{margin}{}\n{margin}{}\n", ticks.into_iter().collect::<String>(), labels.into_iter().collect::<String>())
}

/// The least time of the form 1, 2 or 5 × 10^k whose ticks are `apart` columns or more.
fn tick_step(scale: Scale, apart: usize) -> u64 {
    let wide_enough = |step: &u64| scale.column(*step) >= apart.max(8);
    let powers = std::iter::successors(Some(1_u64), |power| power.checked_mul(10));
    let steps = powers.flat_map(|power| [1, 2, 5].into_iter().filter_map(move |k: u64| power.checked_mul(k)));
    steps.into_iter().find(wide_enough).unwrap_or(u64::MAX)
}

/// What the letters mean that occur, over as many lines as it takes.
fn legend(drawn: &Drawn, margin: usize, width: usize) -> String {
    let entry = |kind: Kind, second: bool, meaning: &str| {
        let (style, letter) = (kind.style(second), cased(kind.letter(), second));
        (meaning.len() + 2, format!("{style}{letter}{style:#} {meaning}"))
    };
    let mut entries: Vec<_> = drawn.kinds.iter().map(|&kind| entry(kind, false, kind.meaning())).collect();
    if drawn.second_pass {
        entries.push(entry(Kind::F, true, "lower case: second pass or direction"));
    }
    entries.push((6, ". idle".to_owned()));
    let mut text = String::new();
    let mut column = width;
    for (length, entry) in entries {
        if column + 3 + length > width {
            if !text.is_empty() {
                text.push('\n');
            }
            text.push_str(&" ".repeat(margin));
            column = margin;
        } else {
            text.push_str("   ");
            column += 3;
        }
        text.push_str(&entry);
        column += length;
    }
    text.push('\n');
    text
}
