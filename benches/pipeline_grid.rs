//! Scratch.
use dualweave::ir::*;
use dualweave::job::training::ScheduleKind;
use dualweave::passes::pipeline::search::{Limits, Objective, search};
use dualweave::passes::pipeline::{generate, lower_bound, replay};
use dualweave::units::Nanos;

fn targets() {
    for (p, m, f, b, w, comm, mem, target) in [
        (4, 12, 5, 6, 4, 0, 4, 201),
        (4, 12, 5, 6, 4, 0, 5, 193),
        (4, 12, 5, 6, 4, 0, 7, 183),
        (4, 12, 5478, 5806, 3534, 200, 16, 178898),
        (4, 8, 1, 1, 1, 0, 4, 27),
        (4, 8, 1, 1, 1, 0, 7, 24),
        (8, 24, 1, 1, 1, 0, 8, 79),
        (8, 24, 1, 1, 1, 0, 15, 72),
        (8, 24, 29718, 29444, 19927, 527, 8, 2187537),
        (32, 16, 1, 1, 1, 0, 32, 95),
    ] {
        for objective in [Objective::Makespan, Objective::LongestSpan] {
            let layout = Layout::new(Placement::Linear, p, 1, m);
            let stages = vec![StageCost { f: Nanos(f), i: Nanos(b), w: Nanos(w), b: Nanos(b + w) }; p as usize];
            let memory = Some(Memory {
                stages: vec![StageMemory { activation: 2, for_weights: 1 }; p as usize],
                limits: vec![2 * mem; p as usize],
            });
            let problem = Problem { layout, stages, pair: PairCost::Sum, hops: Hops::Uniform(Nanos(comm)), memory };
            let t = std::time::Instant::now();
            let found = search(&problem, &Limits { timings: steps(), objective }).unwrap();
            let r = replay(&problem, &found.timetable).unwrap();
            println!(
                "P{p} M{m} mem {mem} {objective:?}: makespan {} (bound {}) span {} target {target} {} {:?} {}",
                r.makespan.0,
                lower_bound(&problem).0,
                r.longest_span().0,
                if r.longest_span().0 <= target { "ok" } else { "MISS" },
                t.elapsed(),
                format!("{:?}", found.origin)
            );
        }
    }
}

fn steps() -> u64 {
    std::env::var("STEPS").map_or(20_000_000, |s| s.parse().unwrap())
}

struct Draw(u64);
impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench" && a != "--").collect();
    if args.first().is_some_and(|a| a == "targets") {
        return targets();
    }
    let n: u64 = args.first().map_or(200, |s| s.parse().unwrap());
    let seed: u64 = args.get(1).map_or(1, |s| s.parse().unwrap());
    let filter = args.get(2).cloned().unwrap_or_default();
    let mut draw = Draw(seed);
    let mut rows = Vec::new();
    let mut cell_no = 0;
    while rows.len() < n as usize {
        cell_no += 1;
        if cell_no > 1000000 {
            break;
        }
        let p = [1, 2, 3, 4, 5, 6, 7, 8, 8, 10, 11, 12, 13, 14, 16][draw.below(15) as usize] as u32;
        let m = (1 + draw.below(4 * u64::from(p))) as u32;
        let cost = ["equal", "564", "profile", "heavy-last", "light-first", "random"][draw.below(6) as usize];
        let quarter = [2, 4, 6, 8][draw.below(4) as usize];
        let mem = (u64::from(p) * quarter / 4).max(1);
        let fb = [100, 80, 67][draw.below(3) as usize];
        let placement =
            [Placement::Linear, Placement::V, Placement::Bidirectional, Placement::Loop][draw.below(4) as usize];
        let sub = draw.below(1 << 30);
        let name = format!("{placement} {cost} P{p} M{m} mem{mem}({quarter}/4) fb{fb}");
        if !filter.split(',').all(|f| name.contains(f)) || (filter.starts_with("only") && false) {
            continue;
        }
        let layout = Layout::new(placement, p, 2, m);
        let s = layout.stages as u64;
        let half = matches!(placement, Placement::V | Placement::Loop);
        let mut d = Draw(sub);
        let mut stages = Vec::new();
        for at in 0..s {
            let (f, i, w) = match cost {
                "564" => (5000, 6000, 4000),
                "profile" => (29718, 29444, 19927),
                _ => (6000, 6000, 6000),
            };
            let scale = match cost {
                "heavy-last" if at + 1 == s => 150,
                "light-first" if at < 3 => 30,
                "random" => 50 + d.below(101),
                _ => 100,
            };
            let k = |x: u64| Nanos(x * scale / if half { 200 } else { 100 });
            let (f, i, w) = (k(f), k(i), k(w));
            stages.push(StageCost { f, i, w, b: i + w });
        }
        let table = (0..s as u32).flat_map(|f| (0..s as u32).map(move |b| (f, b)));
        let pair = match fb {
            100 => PairCost::Sum,
            _ => PairCost::Table(
                table
                    .map(|(f, b)| ((f, b), Nanos((stages[f as usize].f + stages[b as usize].b).0 * fb / 100)))
                    .collect(),
            ),
        };
        let hops = Hops::Uniform(Nanos(if cost == "profile" { 527 } else { 0 }));
        let memory = Some(Memory {
            stages: vec![
                StageMemory { activation: if half { 1 } else { 2 }, for_weights: if half { 1 } else { 2 } };
                s as usize
            ],
            limits: vec![2 * mem; p as usize],
        });
        let problem = Problem { layout, stages, pair, hops, memory };
        let t = std::time::Instant::now();
        let Ok(found) = search(&problem, &Limits { timings: steps(), objective: Objective::Makespan }) else {
            println!("none {name}");
            continue;
        };
        let secs = t.elapsed().as_secs_f64();
        let r = replay(&problem, &found.timetable).unwrap();
        let bound = lower_bound(&problem).0;
        let best = ScheduleKind::ALL
            .into_iter()
            .filter(|k| k.placement() == placement)
            .filter_map(|k| generate(k, &layout).ok())
            .filter_map(|t| {
                let r = replay(&problem, &t).ok()?;
                let fits = t.ranks.iter().all(|a| peak(a) <= if half { 2 * mem } else { mem });
                fits.then_some(r.makespan.0)
            })
            .min();
        rows.push((name, placement, cost, fb, quarter, r.makespan.0, bound, best, secs, format!("{:?}", found.origin)));
    }
    let gap = |a: u64, b: u64| 100.0 * (a as f64 / b as f64 - 1.0);
    rows.sort_by(|a, b| gap(a.5, a.6).total_cmp(&gap(b.5, b.6)));
    let report = |title: String, rows: &[&Row]| {
        if rows.is_empty() {
            return;
        }
        let gaps: Vec<f64> = rows.iter().map(|r| gap(r.5, r.6)).collect();
        let worse = rows.iter().filter(|r| r.7.is_some_and(|b| b < r.5)).count();
        let better = rows.iter().filter(|r| r.7.is_some_and(|b| b > r.5)).count();
        let with = rows.iter().filter(|r| r.7.is_some()).count();
        let mut closed: Vec<f64> = rows
            .iter()
            .filter_map(|r| r.7.map(|b| if b == r.6 { 1.0 } else { (b - r.5) as f64 / (b - r.6) as f64 }))
            .collect();
        closed.sort_by(f64::total_cmp);
        println!(
            "{title:32} n {:4} gap<=1% {:5.1}% median {:5.2} p90 {:6.2} mean {:5.2} sum {} | published {with} better {better} worse {worse} median closed {:.2} | secs mean {:.3} max {:.3}",
            rows.len(),
            100.0 * gaps.iter().filter(|g| **g <= 1.0).count() as f64 / rows.len() as f64,
            gaps[gaps.len() / 2],
            gaps[gaps.len() * 9 / 10],
            gaps.iter().sum::<f64>() / gaps.len() as f64,
            rows.iter().map(|r| r.5).sum::<u64>(),
            closed.get(closed.len() / 2).copied().unwrap_or(1.0),
            rows.iter().map(|r| r.8).sum::<f64>() / rows.len() as f64,
            rows.iter().map(|r| r.8).fold(0.0, f64::max)
        );
    };
    type Row = (String, Placement, &'static str, u64, u64, u64, u64, Option<u64>, f64, String);
    let all: Vec<&Row> = rows.iter().collect();
    for key in [
        "linear",
        "v ",
        "bidirectional",
        "loop",
        " equal",
        "564",
        "profile",
        "heavy",
        "light",
        "random",
        "fb100",
        "fb80",
        "fb67",
        "(2/4)",
        "(4/4)",
        "(6/4)",
        "(8/4)",
    ] {
        let some: Vec<&Row> = all
            .iter()
            .copied()
            .filter(|r| if key == "v " { r.0.starts_with("v ") } else { r.0.contains(key) })
            .collect();
        report(key.to_owned(), &some);
    }
    report("all".to_owned(), &all);
    for row in rows.iter().rev().take(std::env::var("WORST").map_or(12, |s| s.parse().unwrap())) {
        println!(
            "{:6.2}% {} {} bound {} published {:?} {:.2}s {}",
            gap(row.5, row.6),
            row.0,
            row.5,
            row.6,
            row.7,
            row.8,
            row.9
        );
    }
    if std::env::var("ALL").is_ok() {
        for row in &rows {
            println!("cell {} {} {}", row.0, row.5, row.6);
        }
    }
}

fn peak(actions: &[Action]) -> u64 {
    let (mut held, mut peak) = (0_u64, 0);
    for action in actions {
        held += u64::from(action.forward().is_some());
        peak = peak.max(held);
        held -= u64::from(action.weight_gradient().is_some());
    }
    peak
}
