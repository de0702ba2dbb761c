//! The numbers of a report, as HTML. Cells carry the numbers of `simulate --json`, under its keys, beside what people read.

use std::collections::BTreeMap;
use std::fmt::{Display, Write as _};

use super::{Planned, escaped};
use crate::interop::measured::median;
use crate::sim::Activity;
use crate::units::Nanos;
use crate::view::numbers::{count, percent};
use crate::view::palette::Category;
use crate::view::plan_text::program_name;
use crate::view::simulation::{Fact, RANK_COLUMNS, Simulated, facts, rank_cells, title};

/// The part of the page with a name; of a name that is none, nothing.
pub fn of(name: &str, plans: &[Planned]) -> String {
    let Some(first) = plans.first() else { return String::new() };
    match name {
        "sizes" => escaped(&title(&first.simulated)[1]),
        "plan" => escaped(first.name),
        "digest" => escaped(&first.simulated.plan.digest.chars().take(12).collect::<String>()),
        "compiler" => escaped(&first.simulated.plan.origin.compiler),
        "facts" => fact_list(&first.simulated),
        "comparison" => comparison(plans),
        "legend" => legend(),
        "figures" => figures(plans),
        "measured" => plans.iter().map(measured_table).collect(),
        "ranks" => of_each(plans, |plan| rank_table(&plan.simulated)),
        "waits" => of_each(plans, |plan| wait_table(&plan.simulated)),
        "memory" => of_each(plans, |plan| memory_table(&plan.simulated)),
        "programs" => of_each(plans, |plan| program_table(&plan.simulated)),
        _ => String::new(),
    }
}

/// With the name of the plan above, where there are several.
fn of_each(plans: &[Planned], html: impl Fn(&Planned) -> String) -> String {
    let each = |plan: &Planned| match plans.len() {
        1 => html(plan),
        _ => format!("<h3>{}</h3>{}", escaped(plan.name), html(plan)),
    };
    plans.iter().map(each).collect()
}

fn fact_list(simulated: &Simulated) -> String {
    let mut html = String::from("<dl class=\"facts\">");
    for Fact { key, name, value, number, more } in facts(simulated) {
        let number = number.map_or(String::new(), |number| format!(" data-{key}=\"{number}\""));
        let _ = write!(
            html,
            "<div><dt>{name}</dt><dd{number}><strong>{}</strong> <span>{}</span></dd></div>",
            escaped(&value),
            escaped(&more)
        );
    }
    html + "</dl>"
}

/// The facts of several plans beside each other; how far the others are from the first.
fn comparison(plans: &[Planned]) -> String {
    let [first, others @ ..] = plans else { return String::new() };
    if others.is_empty() {
        return String::new();
    }
    let mut html = String::from("<section id=\"comparison\"><h2>Compared</h2>");
    let names = plans.iter().map(|plan| (escaped(plan.name), "n"));
    html += &table_head(std::iter::once((String::new(), "")).chain(names), "");
    let schedules = plans.iter().map(|plan| escaped(&title(&plan.simulated).join(" · ")));
    let _ = write!(html, "<tr><th scope=\"row\">what</th>");
    html.extend(schedules.map(|what| format!("<td>{what}</td>")));
    html += "</tr>";
    let all: Vec<Vec<Fact>> = others.iter().map(|plan| facts(&plan.simulated)).collect();
    for fact in facts(&first.simulated) {
        let _ = write!(html, "<tr><th scope=\"row\">{}</th><td class=\"n\">{}</td>", fact.name, escaped(&fact.value));
        for other in &all {
            let Some(other) = other.iter().find(|other| other.key == fact.key) else {
                html += "<td class=\"n\">–</td>";
                continue;
            };
            let numbers = [&fact.number, &other.number].map(|number| number.as_ref().and_then(|n| n.as_f64()));
            let off = match numbers {
                [Some(old), Some(new)] if old > 0.0 => format!(" <small>{:+.1} %</small>", 100.0 * (new / old - 1.0)),
                _ => String::new(),
            };
            let data = other.number.as_ref().map_or(String::new(), |n| format!(" data-{}=\"{n}\"", other.key));
            let _ = write!(html, "<td class=\"n\"{data}>{}{off}</td>", escaped(&other.value));
        }
        html += "</tr>";
    }
    html + "</tbody></table></div></section>"
}

fn legend() -> String {
    let one = |(at, of): (usize, &Category)| {
        let pair = if *of == Category::FB { " pair" } else { "" };
        format!("<li><i class=\"swatch{pair}\" style=\"--c:var(--c{at})\"></i>{}</li>", of.meaning())
    };
    let all: String = Category::ALL.iter().enumerate().map(one).collect();
    format!("<ul class=\"legend\" aria-label=\"Colours\">{all}<li><i class=\"swatch idle\"></i>idle</li></ul>")
}

/// Where the script draws the timeline of each plan.
fn figures(plans: &[Planned]) -> String {
    let figure = |(number, plan): (usize, &Planned)| {
        let caption = match plans.len() {
            1 => String::new(),
            _ => {
                let what = &title(&plan.simulated)[0];
                format!("<figcaption><strong>{}</strong> {}</figcaption>", escaped(plan.name), escaped(what))
            }
        };
        let label = format!("Timeline of {}", count(plan.simulated.plan.ranks.len() as u64, "rank"));
        format!(
            "<figure class=\"timeline\" data-plan=\"{number}\">{caption}<div class=\"chart\"><div class=\"labels\"></div>\
             <canvas role=\"img\" aria-label=\"{label}; its numbers are in the tables below\"></canvas></div></figure>"
        )
    };
    plans.iter().enumerate().map(figure).collect()
}

/// A table's start; a column is its name, which is HTML, and its class: `n` for numbers.
fn table_head(columns: impl Iterator<Item = (String, &'static str)>, class: &str) -> String {
    let mut html = format!("<div class=\"wide\"><table class=\"{class}\"><thead><tr>");
    for (name, class) in columns {
        let _ = write!(html, "<th scope=\"col\" class=\"{class}\">{name}</th>");
    }
    html + "</tr></thead><tbody>"
}

fn head(columns: &[&str], numbers: &[usize], class: &str) -> String {
    let column = |(at, name): (usize, &&str)| ((*name).to_owned(), if numbers.contains(&at) { "n" } else { "" });
    table_head(columns.iter().enumerate().map(column), class)
}

fn number(html: &mut String, key: &str, exact: impl Display, shown: impl Display) {
    let _ = write!(html, "<td class=\"n\" data-{key}=\"{exact}\">{shown}</td>");
}

fn rank_table(simulated: &Simulated) -> String {
    let step = simulated.simulation.step;
    let mut columns = RANK_COLUMNS.to_vec();
    columns.insert(2, "step");
    let mut html = head(&columns, &[0, 3, 4, 5, 6, 7], "ranks");
    for rank in 0..simulated.simulation.ranks.len() {
        let timing = &simulated.simulation.ranks[rank];
        let [name, stages, busy, comm, exposed, bubble, memory, waits] = rank_cells(simulated, rank);
        let width = |time: Nanos| 100.0 * time.as_f64() / step.as_f64().max(1.0);
        let _ = write!(
            html,
            "<tr data-rank=\"{rank}\"><th scope=\"row\" class=\"n\">{name}</th><td>{stages}</td><td><div class=\"shares\">\
             <i style=\"width:{:.2}%\"></i><i style=\"width:{:.2}%\"></i></div></td>",
            width(timing.busy),
            width(timing.exposed),
        );
        number(&mut html, "busy_ns", timing.busy.0, busy);
        number(&mut html, "communication_ns", timing.communication.0, comm);
        number(&mut html, "exposed_ns", timing.exposed.0, exposed);
        number(&mut html, "bubble_ns", timing.bubble.0, bubble);
        number(&mut html, "need_bytes", simulated.memory[rank].need.total().0, memory);
        let _ = write!(html, "<td>{}</td></tr>", escaped(&waits));
    }
    html + "</tbody></table></div>"
}

fn wait_table(simulated: &Simulated) -> String {
    let mut html = head(&["rank", "for", "time", "of the bubble"], &[0, 2, 3], "");
    for (rank, timing) in simulated.simulation.ranks.iter().enumerate() {
        for wait in &timing.waits {
            let _ = write!(
                html,
                "<tr data-rank=\"{rank}\"><th scope=\"row\" class=\"n\">{rank}</th><td>{}</td>",
                escaped(&wait.cause.to_string())
            );
            number(&mut html, "ns", wait.time.0, wait.time);
            let _ = write!(html, "<td class=\"n\">{}</td></tr>", percent(wait.time.as_f64(), timing.bubble.as_f64()));
        }
    }
    html + "</tbody></table></div>"
}

fn memory_table(simulated: &Simulated) -> String {
    let columns = ["rank", "needed", "state", "arena", "most in use", "at", "with", "chunks held"];
    let mut html = head(&columns, &[0, 1, 2, 3, 4, 5, 7], "");
    for (rank, memory) in simulated.memory.iter().enumerate() {
        let _ = write!(html, "<tr data-rank=\"{rank}\"><th scope=\"row\" class=\"n\">{rank}</th>");
        let need = memory.need;
        for (key, bytes) in [
            ("need_bytes", need.total()),
            ("state_bytes", need.state),
            ("arena_bytes", need.arena),
            ("peak_bytes", memory.peak),
        ] {
            number(&mut html, key, bytes.0, bytes);
        }
        number(&mut html, "peak_at_ns", memory.at.0, memory.at);
        let item = memory.item.and_then(|item| simulated.plan.ranks[rank].items.get(item as usize));
        let _ = write!(html, "<td>{}</td>", item.map_or(String::new(), |item| item.0.to_string()));
        number(&mut html, "chunks_held", memory.chunks, memory.chunks);
        html += "</tr>";
    }
    html + "</tbody></table></div>"
}

fn program_table(simulated: &Simulated) -> String {
    let mut runs: BTreeMap<u32, u64> = BTreeMap::new();
    for program in simulated.simulation.ranks.iter().flat_map(|rank| &rank.programs).flatten() {
        *runs.entry(*program).or_default() += 1;
    }
    let columns = ["program", "runs", "time", "busy", "comm", "exposed", "of its time"];
    let mut html = head(&columns, &[1, 2, 3, 4, 5, 6], "");
    for (program, timing) in simulated.simulation.programs.iter().enumerate() {
        let name = program_name(simulated.plan, program);
        let _ = write!(html, "<tr data-program=\"{program}\"><th scope=\"row\">{}</th>", escaped(&name));
        let runs = runs.get(&(program as u32)).copied().unwrap_or(0);
        number(&mut html, "runs", runs, runs);
        for (key, time) in [
            ("total_ns", timing.total),
            ("busy_ns", timing.busy),
            ("communication_ns", timing.communication),
            ("exposed_ns", timing.exposed),
        ] {
            number(&mut html, key, time.0, time);
        }
        let _ = write!(html, "<td class=\"n\">{}</td></tr>", percent(timing.exposed.as_f64(), timing.total.as_f64()));
    }
    html + "</tbody></table></div>"
}

/// What everything took, beside what the model says: compute items by what they run, all others by kind. Nothing where nothing was measured.
fn measured_table(planned: &Planned) -> String {
    let Some(measured) = planned.measured else { return String::new() };
    let simulated = &planned.simulated;
    let mut rows: BTreeMap<(bool, String), (Vec<Nanos>, Vec<Nanos>)> = BTreeMap::new();
    for ((list, timing), ran) in simulated.plan.ranks.iter().zip(&simulated.simulation.ranks).zip(&measured.ranks) {
        for ((item, predicted), ran) in list.items.iter().zip(&timing.items).zip(&ran.items) {
            let activity = Activity::of(item.0);
            let other = || Category::of(item.0).meaning().to_owned();
            let name = activity.map_or_else(other, |activity| activity.to_string());
            let row = rows.entry((activity.is_none(), name)).or_default();
            row.0.push(predicted.duration());
            row.1.push(ran.duration());
        }
    }
    let step = measured.ranks.iter().flat_map(|rank| &rank.items).map(|span| span.end).max().unwrap_or_default();
    let mut html = format!(
        "<section id=\"measured\"><h2>Predicted and measured</h2><p>A step of {} took {step}; {} were predicted. Below: the median over \
         all runs. A send or a receive that waits for its partner counts as running.</p>",
        escaped(planned.name),
        simulated.simulation.step,
    );
    html += &head(&["what", "runs", "predicted", "measured", "off"], &[1, 2, 3, 4], "");
    for ((_, name), (predicted, ran)) in rows {
        let (runs, predicted, ran) = (ran.len(), median(predicted), median(ran));
        let _ = write!(html, "<tr><th scope=\"row\">{}</th><td class=\"n\">{runs}</td>", escaped(&name));
        number(&mut html, "predicted_ns", predicted.0, predicted);
        number(&mut html, "measured_ns", ran.0, ran);
        let off = match ran {
            Nanos::ZERO => "–".to_owned(),
            ran => format!("{:+.1} %", 100.0 * (predicted.as_f64() / ran.as_f64() - 1.0)),
        };
        let _ = write!(html, "<td class=\"n\">{off}</td></tr>");
    }
    html + "</tbody></table></div></section>"
}
