//! A plan's simulated step as an SVG for a paper: as wide as a column, a line per rank, text that stays text. All lengths are points.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{self, Write};

use super::chart::{Axis, Bar};
use super::palette::Category;
use super::report::escaped;
use super::simulation::{Simulated, title};
use crate::plan::StreamId;
use crate::units::Nanos;

/// Width of a column of most two-column papers: 3.35 inches.
const WIDTH: f64 = 241.0;
/// Font size; labels of bars are smaller.
const FONT: f64 = 6.5;
const SMALL: f64 = 4.5;
/// Average advance of a digit or letter, as a share of the font size, in the fonts named below.
const ADVANCE: f64 = 0.56;
/// Height of a rank's line, and of the compute items and the collectives in it.
const ROW: (f64, f64, f64) = (8.0, 5.6, 1.2);
/// Between neighbours, where there is room.
const SEAM: f64 = 0.2;

/// Writes the figure.
///
/// # Errors
/// If `out` cannot be written to.
pub fn write(simulated: &Simulated, out: &mut dyn Write) -> io::Result<()> {
    let (plan, simulation) = (simulated.plan, simulated.simulation);
    let ranks = plan.ranks.len();
    let label = |rank: usize| format!("rank {rank}");
    let left = label(ranks.saturating_sub(1)).len() as f64 * FONT * ADVANCE + 3.0;
    let scale = (WIDTH - left - 1.0) / simulation.step.as_f64().max(1.0);
    let mut body = String::new();
    let mut drawn = BTreeSet::new();
    for rank in 0..ranks {
        let top = rank as f64 * ROW.0;
        let _ = writeln!(
            body,
            "<text x=\"{:.2}\" y=\"{:.2}\" text-anchor=\"end\">{}</text>",
            left - 3.0,
            top + ROW.1 - 0.6,
            label(rank)
        );
        body += &line(simulated, rank, (left, top, scale), &mut drawn);
    }
    let bottom = ranks as f64 * ROW.0 + 1.0;
    body += &axis(simulation.step, (left, bottom, scale));
    let (legend, height) = legend(&drawn, left, bottom + 2.2 * FONT);
    body += &legend;

    let [what, sizes] = title(simulated);
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}pt\" height=\"{height:.2}pt\" viewBox=\"0 0 {WIDTH} {height:.2}\" \
         font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\" font-size=\"{FONT}\" role=\"img\">"
    )?;
    writeln!(out, "<title>{}</title>", escaped(&format!("{what} · {sizes}")))?;
    out.write_all(body.as_bytes())?;
    out.write_all(b"</svg>\n")
}

/// What a rank runs: compute items, and gradients and parameters below them. A path for each colour.
fn line(
    simulated: &Simulated,
    rank: usize,
    (left, top, scale): (f64, f64, f64),
    drawn: &mut BTreeSet<Category>,
) -> String {
    let plan = simulated.plan;
    let mut paths: Vec<String> = vec![String::new(); Category::ALL.len()];
    let mut texts = String::new();
    let mut rectangle = |of: Category, from: f64, width: f64, y: f64, height: f64| {
        let width = if width > 4.0 * SEAM { width - SEAM } else { width };
        let _ = write!(paths[of as usize], "M{from:.2} {y:.2}h{width:.2}v{height:.2}h-{width:.2}z");
    };
    for (item, span) in plan.ranks[rank].items.iter().zip(&simulated.simulation.ranks[rank].items) {
        let of = Category::of(item.0);
        let (from, width) = (left + span.start.as_f64() * scale, span.duration().as_f64() * scale);
        match item.0.stream() {
            StreamId::From(_) | StreamId::To(_) => continue,
            StreamId::Sync => rectangle(of, from, width, top + ROW.1 + 0.3, ROW.2),
            StreamId::Compute if of == Category::FB => {
                rectangle(Category::F, from, width, top, ROW.1 / 2.0);
                rectangle(Category::B, from, width, top + ROW.1 / 2.0, ROW.1 / 2.0);
            }
            StreamId::Compute => rectangle(of, from, width, top, ROW.1),
        }
        drawn.insert(of);
        let Some(action) = item.0.action() else { continue };
        let text = Bar::new(&plan.layout, rank as u32, action, span.start, span.end).text;
        if text.len() as f64 * SMALL * ADVANCE + 1.0 < width {
            let ink = if matches!(of, Category::I | Category::W) { "" } else { " fill=\"#fff\"" };
            let (x, y) = (from + width / 2.0, top + ROW.1 / 2.0 + SMALL * 0.36);
            let _ = writeln!(
                texts,
                "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{SMALL}\" text-anchor=\"middle\"{ink}>{text}</text>"
            );
        }
    }
    let path = |(of, path): (&Category, String)| match path.is_empty() {
        true => String::new(),
        false => format!("<path fill=\"{}\" d=\"{path}\"/>\n", of.colours()[0]),
    };
    Category::ALL.iter().zip(paths).map(path).collect::<String>() + &texts
}

/// The time axis, with a few numbers.
fn axis(step: Nanos, (left, top, scale): (f64, f64, f64)) -> String {
    let (right, axis) = (left + step.as_f64() * scale, Axis::of(step));
    let mut text =
        format!("<path fill=\"none\" stroke=\"#000\" stroke-width=\"0.4\" d=\"M{left:.2} {top:.2}H{right:.2}");
    let powers = std::iter::successors(Some(1_u64), |power| power.checked_mul(10));
    let mut steps = powers.flat_map(|power| [1, 2, 5].into_iter().filter_map(move |k: u64| power.checked_mul(k)));
    let apart = steps.find(|&apart| step.0 / apart < 8).unwrap_or(u64::MAX);
    let mut numbers = String::new();
    for time in (0..).map_while(|k: u64| apart.checked_mul(k).filter(|&time| time <= step.0)) {
        let x = left + time as f64 * scale;
        let _ = write!(text, "M{x:.2} {top:.2}v1.6");
        let unit = if time == 0 || axis.unit.is_empty() { String::new() } else { format!(" {}", axis.unit) };
        let anchor = if time == 0 {
            "start"
        } else if x + 8.0 > right {
            "end"
        } else {
            "middle"
        };
        let y = top + 1.6 + FONT * 0.95;
        let number = axis.number(Nanos(time));
        let _ = writeln!(numbers, "<text x=\"{x:.2}\" y=\"{y:.2}\" text-anchor=\"{anchor}\">{number}{unit}</text>");
    }
    format!("{text}\"/>\n{numbers}")
}

/// What the colours mean that occur, from `top` on; and how high everything is then.
fn legend(drawn: &BTreeSet<Category>, left: f64, top: f64) -> (String, f64) {
    let (mut text, mut x, mut y) = (String::new(), left, top);
    let swatch = FONT * 0.8;
    for of in drawn {
        let width = swatch + 2.0 + of.meaning().len() as f64 * FONT * ADVANCE * 0.92 + 5.0;
        if x + width > WIDTH && x > left {
            (x, y) = (left, y + FONT * 1.3);
        }
        let mut patch = |colour: &str, y: f64, height: f64| {
            let _ = write!(
                text,
                "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{swatch:.2}\" height=\"{height:.2}\" fill=\"{colour}\"/>"
            );
        };
        match of {
            Category::FB => {
                patch(Category::F.colours()[0], y, swatch / 2.0);
                patch(Category::B.colours()[0], y + swatch / 2.0, swatch / 2.0);
            }
            of => patch(of.colours()[0], y, swatch),
        }
        let _ = writeln!(
            text,
            "<text x=\"{:.2}\" y=\"{:.2}\">{}</text>",
            x + swatch + 2.0,
            y + swatch * 0.92,
            escaped(of.meaning())
        );
        x += width;
    }
    (text, y + FONT * 1.3)
}
