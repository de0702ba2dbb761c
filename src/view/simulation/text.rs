//! The report of `dualweave simulate`: what a person asks first comes first.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};

use super::Simulated;
use crate::sim::{Activity, RankTiming, Rates, Relief, Wait};
use crate::units::{Bytes, Nanos};
use crate::view::numbers::{count, grouped, percent, rate};
use crate::view::table::{finish, new as new_table};

/// With more ranks than this, only those that say something are listed.
const LISTED_RANKS: usize = 16;
/// Of many ranks, so many are listed for each thing to say: idle longest, fullest.
const EXTREMES: usize = 4;
/// Stages of a rank that are all named.
const NAMED_STAGES: usize = 4;

const BOLD: Style = Style::new().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The whole report, in at most `width` columns where that is possible.
pub fn to_text(simulated: &Simulated, width: usize) -> String {
    let fullest = simulated.fullest();
    let mut text = headline(simulated);
    let _ = write!(text, "\n{}", rank_table(simulated, width));
    let _ = write!(text, "\nMemory of rank {fullest}, the fullest\n{}", memory_table(simulated, fullest, width));
    text.push_str(&relief(simulated, fullest));
    text
}

/// The report on one rank.
pub fn rank_text(simulated: &Simulated, rank: usize, width: usize) -> String {
    let timing = &simulated.simulation.ranks[rank];
    let step = simulated.simulation.step;
    let stages = simulated.plan.layout.stages_of(rank as u32);
    let name = format!("Rank {rank}, {}", stages_text(&stages));
    let mut text = format!("{BOLD}{name}{BOLD:#}\n\n");
    let mut line = |name: &str, time: Nanos| {
        let _ = writeln!(text, "  {name:<12}{:>10}{:>10}", time.to_string(), percent(time.as_f64(), step.as_f64()));
    };
    line("step", step);
    line("busy", timing.busy);
    line("exposed", timing.exposed);
    line("bubble", timing.bubble);
    line("all comm", timing.communication);
    let _ = write!(text, "\n{}", activity_table(simulated, rank, width));
    let _ = write!(text, "\nWhat the bubble was spent waiting for\n{}", waits_table(timing, width));
    let _ = write!(text, "\nMemory\n{}", memory_table(simulated, rank, width));
    text.push_str(&relief(simulated, rank));
    text
}

fn headline(simulated: &Simulated) -> String {
    let Simulated { plan, simulation, memory, prices } = simulated;
    let origin = &plan.origin;
    let mut text = format!(
        "{BOLD}{} on {} · {}{BOLD:#} · {} · {} · {}\n\n",
        plan.model.name,
        origin.cluster,
        origin.schedule,
        count(u64::from(plan.layout.ranks), "rank"),
        count(origin.gpus, "GPU"),
        count(u64::from(plan.layout.micro_batches), "micro-batch"),
    );
    let mut line = |name: &str, value: &str, more: &str| {
        // The value is padded outside the bold, so that a line with nothing more has no trailing spaces.
        let padding = if more.is_empty() { 0 } else { 12usize.saturating_sub(value.chars().count()).max(2) };
        let _ = writeln!(text, "  {name:<14}{BOLD}{value}{BOLD:#}{:padding$}{more}", "");
    };
    let after = simulation.step.saturating_sub(simulation.pipeline);
    line(
        "step time",
        &simulation.step.to_string(),
        &match after {
            Nanos::ZERO => String::new(),
            after => format!("pipeline {}, then {after} of gradients and optimizer", simulation.pipeline),
        },
    );
    match Rates::new(plan, simulation) {
        Some(rates) => {
            let a_gpu = format!("{} on a GPU", rate(rates.tokens_s_gpu));
            line("tokens/s", &rate(rates.tokens_s), &a_gpu);
            let peak = format!("of the {:.0} TFLOP/s dense bf16 peak", plan.machine.bf16_flop_s / 1e12);
            line("MFU", &percent(rates.mfu, 1.0), &peak);
            let hours = rates.gpu_hours_per_trillion_tokens;
            line("GPU hours", &rate(hours), "for a trillion tokens");
            if let Some(usd) = prices.usd(hours) {
                line("cost", &format!("{} USD", rate(usd)), "for a trillion tokens");
            }
            if let Some(mwh) = prices.mwh(hours) {
                line("energy", &format!("{} MWh", rate(mwh)), "for a trillion tokens");
            }
        }
        None => line("tokens/s", "–", "the plan has no time, tokens, GPUs or peak to tell rates from"),
    }
    let worst = |of: fn(&RankTiming) -> Nanos| {
        let rank = (0..simulation.ranks.len()).rev().max_by_key(|&rank| of(&simulation.ranks[rank])).unwrap_or(0);
        let time = simulation.ranks.get(rank).map(of).unwrap_or_default();
        format!("of rank time; most on rank {rank}, {}", percent(time.as_f64(), simulation.step.as_f64()))
    };
    let share = |share: Option<f64>| share.map_or("–".to_owned(), |share| percent(share, 1.0));
    line("bubble", &share(simulated.share(|rank| rank.bubble)), &worst(|rank| rank.bubble));
    line("exposed comm", &share(simulated.share(|rank| rank.exposed)), &worst(|rank| rank.exposed));

    let fullest = simulated.fullest();
    if let Some(most) = memory.get(fullest) {
        let item = most.item.and_then(|item| plan.ranks[fullest].items.get(item as usize));
        let when = item.map_or(String::new(), |item| format!(", at {} with {}", most.at, item.0));
        let more = format!("of {} on rank {fullest}; most in use is {}{when}", plan.machine.memory, most.peak);
        line("memory", &most.need.total().to_string(), &more);
    }
    let certificate = plan.timetable;
    let gap = certificate.makespan.saturating_sub(certificate.lower_bound);
    line(
        "timetable",
        &certificate.makespan.to_string(),
        &match gap {
            Nanos::ZERO => "no timetable of these programs is shorter".to_owned(),
            gap => {
                let gap = percent(gap.as_f64(), certificate.lower_bound.as_f64());
                format!("none is shorter than {}: gap at most {gap}", certificate.lower_bound)
            }
        },
    );
    text
}

fn rank_table(simulated: &Simulated, width: usize) -> String {
    let ranks = &simulated.simulation.ranks;
    let step = simulated.simulation.step.as_f64();
    let listed = listed_ranks(simulated);
    let columns = ["rank", "stages", "busy", "comm", "exposed", "bubble", "memory", "waits mostly for"];
    let mut table = new_table(&columns, width);
    for &rank in &listed {
        let (timing, memory) = (&ranks[rank], &simulated.memory[rank]);
        let share = |time: Nanos| percent(time.as_f64(), step);
        table.add_row(vec![
            rank.to_string(),
            stages_text(&simulated.plan.layout.stages_of(rank as u32)).replace("stages ", "").replace("stage ", ""),
            share(timing.busy),
            share(timing.communication),
            share(timing.exposed),
            share(timing.bubble),
            memory.need.total().to_string(),
            timing.waits.first().map_or(String::new(), |wait| wait_text(wait, timing.bubble)),
        ]);
    }
    finish(&mut table, &[0, 2, 3, 4, 5, 6]);
    let mut text = format!("{table}\n");
    if listed.len() < ranks.len() {
        let others = (0..ranks.len()).filter(|rank| !listed.contains(rank));
        let bubbles: Vec<Nanos> = others.clone().map(|rank| ranks[rank].bubble).collect();
        let needs: Vec<Bytes> = others.map(|rank| simulated.memory[rank].need.total()).collect();
        let share = |time: Option<&Nanos>| percent(time.copied().unwrap_or_default().as_f64(), step);
        let bytes = |bytes: Option<&Bytes>| bytes.copied().unwrap_or_default();
        let _ = writeln!(
            text,
            "{} more: bubble {} to {}, memory {} to {}. `--rank N` shows one, `--json` all.",
            count(bubbles.len() as u64, "rank"),
            share(bubbles.iter().min()),
            share(bubbles.iter().max()),
            bytes(needs.iter().min()),
            bytes(needs.iter().max()),
        );
    }
    text
}

/// All ranks if they are few; else the first, the last, the idlest and the fullest.
fn listed_ranks(simulated: &Simulated) -> BTreeSet<usize> {
    let all: Vec<usize> = (0..simulated.simulation.ranks.len()).collect();
    if all.len() <= LISTED_RANKS {
        return all.into_iter().collect();
    }
    let (mut idle, mut full) = (all.clone(), all.clone());
    idle.sort_by_key(|&rank| std::cmp::Reverse(simulated.simulation.ranks[rank].bubble));
    full.sort_by_key(|&rank| std::cmp::Reverse(simulated.memory[rank].need.total()));
    let ends = [0, all.len() - 1];
    let extremes = idle.into_iter().take(EXTREMES).chain(full.into_iter().take(EXTREMES));
    extremes.chain(ends).collect()
}

/// Items by what they do: how many, how long.
fn activity_table(simulated: &Simulated, rank: usize, width: usize) -> String {
    let timing = &simulated.simulation.ranks[rank];
    let mut rows: BTreeMap<(Option<Activity>, &str), (u64, Nanos)> = BTreeMap::new();
    for (item, span) in simulated.plan.ranks[rank].items.iter().zip(&timing.items) {
        use crate::plan::Task;
        let name = match item.0 {
            Task::SendAct(..) => "activations sent",
            Task::SendGrad(..) => "gradients sent",
            Task::RecvAct(..) => "activations received",
            Task::RecvGrad(..) => "gradients received",
            Task::ReduceGrads(_) => "gradient reduction",
            Task::GatherParams(_) => "parameters gathered",
            _ => "",
        };
        let row = rows.entry((Activity::of(item.0), name)).or_default();
        *row = (row.0 + 1, row.1 + span.duration());
    }
    let mut table = new_table(&["items", "count", "mean", "sum"], width);
    // Compute items first: in the order of the map `None` comes first.
    let (others, compute): (Vec<_>, Vec<_>) = rows.into_iter().partition(|((activity, _), _)| activity.is_none());
    for ((activity, name), (number, time)) in compute.into_iter().chain(others) {
        let name = activity.map_or(name.to_owned(), |activity| activity.to_string());
        table.add_row(vec![name, grouped(number), Nanos(time.0 / number).to_string(), time.to_string()]);
    }
    finish(&mut table, &[1, 2, 3]);
    format!("{table}\n")
}

fn waits_table(timing: &RankTiming, width: usize) -> String {
    let mut table = new_table(&["for", "time", "share"], width);
    for wait in &timing.waits {
        let share = percent(wait.time.as_f64(), timing.bubble.as_f64());
        table.add_row(vec![wait.cause.to_string(), wait.time.to_string(), share]);
    }
    finish(&mut table, &[1, 2]);
    format!("{table}\n")
}

fn memory_table(simulated: &Simulated, rank: usize, width: usize) -> String {
    let Some(memory) = simulated.memory.get(rank) else { return String::new() };
    let limit = simulated.plan.machine.memory.as_f64();
    let mut table = new_table(&["at the peak", "bytes", "of the limit"], width);
    for &(kind, bytes) in &memory.kinds {
        table.add_row(vec![kind.to_string(), bytes.to_string(), percent(bytes.as_f64(), limit)]);
    }
    table.add_row(vec!["all".to_owned(), memory.peak.to_string(), percent(memory.peak.as_f64(), limit)]);
    finish(&mut table, &[1, 2]);
    let need = memory.need;
    format!(
        "{table}\nActivations of {} are held then.\nNeeded in all: {}: {} of state, and an arena of {} ({} activations, {} message \
         buffers, {} all-to-all; {} lost between them).\n",
        count(u64::from(memory.chunks), "chunk"),
        need.total(),
        need.state,
        need.arena,
        need.activations,
        need.messages,
        need.exchange,
        percent(need.fragmentation(), 1.0),
    )
}

/// What would make the rank fit; nothing if it does.
fn relief(simulated: &Simulated, rank: usize) -> String {
    let limit = simulated.plan.machine.memory;
    let Some(memory) = simulated.memory.get(rank) else { return String::new() };
    let Some(relief) = Relief::new(memory, limit) else { return String::new() };
    let need = memory.need.total();
    let mut text =
        format!("\n{BAD}It does not fit{BAD:#}: rank {rank} needs {need}, {} more than {limit}.\n", relief.over);
    let others = simulated.memory.iter().filter(|rank| rank.need.total() > limit).count().saturating_sub(1);
    if others > 0 {
        let _ = writeln!(text, "  Ranks that need too much besides: {}.", grouped(others as u64));
    }
    if relief.over_at_peak == Bytes::ZERO {
        let _ = writeln!(
            text,
            "  At most {} are live at once; it is the message rings and what is lost in the arena.",
            memory.peak
        );
        return text;
    }
    if let Some((held, fit)) = relief.chunks {
        let _ =
            writeln!(text, "  Activations of {} are held at the peak; {fit} would fit.", count(held.into(), "chunk"));
    }
    for (kind, share) in &relief.kinds {
        let _ = writeln!(text, "  Or: {kind} smaller by {}, all else the same.", percent(*share, 1.0));
    }
    if relief.chunks.is_none() && relief.kinds.is_empty() {
        let _ = writeln!(text, "  No single kind takes that much: several have to be smaller.");
    }
    text
}

fn wait_text(wait: &Wait, bubble: Nanos) -> String {
    format!("{} ({:.0} %)", wait.cause, 100.0 * wait.time.as_f64() / bubble.as_f64())
}

/// `stage 3`, `stages 3, 12`.
fn stages_text(stages: &[u32]) -> String {
    let names: Vec<String> = stages.iter().map(u32::to_string).collect();
    match &names[..] {
        [one] => format!("stage {one}"),
        few if few.len() <= NAMED_STAGES => format!("stages {}", few.join(", ")),
        [first, second, .., last] => format!("stages {first}, {second}, … {last}"),
        _ => "no stage".to_owned(),
    }
}
