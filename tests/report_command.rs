//! `simulate --report` and `--svg`: what a page holds is what `simulate --json` says, whatever names and numbers a plan has. How it looks and
//! behaves is `.ci/report`'s to see, in a browser.

#[path = "common/measured_trace.rs"]
mod measured_trace;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::LazyLock;

use dualweave::job::{Overrides, load};
use dualweave::passes::compile;
use dualweave::plan::{Plan, Task};
use dualweave::sim::memory::memory;
use dualweave::sim::simulate;
use dualweave::units::Bytes;
use measured_trace::trace;
use serde_json::Value;

/// The smallest example: four ranks, DualPipe, pairs.
static PLAN: LazyLock<Plan> = LazyLock::new(|| {
    let job = load("examples/tiny/job.ron".as_ref(), &Overrides::default()).expect("the example").job;
    compile(&job).expect("a plan").plan
});

fn dualweave(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dualweave"));
    command.current_dir(folder).args(args).output().expect("the command starts")
}

/// A folder with `plan.ron` in it.
fn folder(plan: &Plan) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("plan.ron"), plan.to_ron()).expect("a plan written");
    folder
}

fn done(folder: &Path, args: &[&str]) -> String {
    let output = dualweave(folder, args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn refusal(folder: &Path, args: &[&str]) -> String {
    let output = dualweave(folder, args);
    let text =
        String::from_utf8_lossy(&output.stderr).split_whitespace().collect::<Vec<_>>().join(" ").replace("│ ", "");
    assert_eq!(output.status.code(), Some(2), "{args:?}: {text}");
    assert!(output.stdout.is_empty() && !text.contains("panicked"), "{args:?}: {text}");
    text
}

fn page(plan: &Plan) -> String {
    done(folder(plan).path(), &["simulate", "plan.ron", "--report", "-"])
}

/// The JSON that the page's script draws.
fn data(page: &str) -> Value {
    let (_, rest) = page.split_once("<script type=\"application/json\" id=\"data\">").expect("data");
    serde_json::from_str(rest.split_once("</script>").expect("its end").0).expect("JSON")
}

fn numbers(of: &Value) -> Vec<i64> {
    of.as_array().expect("a list").iter().map(|number| number.as_i64().expect("a whole number")).collect()
}

/// The columns say what the simulation does. This is a reader of its own, beside the page's.
#[test]
fn columns_hold_every_item_gap_and_load() {
    let page = page(&PLAN);
    let data = data(&page);
    let of = &data["plans"][0];
    let simulation = simulate(&PLAN).expect("times");
    assert_eq!(of["step"], simulation.step.0);
    for (number, timing) in simulation.ranks.iter().enumerate() {
        let rank = &of["ranks"][number];
        let [shapes, micros, backwards, starts] =
            ["shape", "micro", "backward", "start"].map(|key| numbers(&rank[key]));
        assert_eq!(shapes.len(), timing.items.len());
        let (mut ends, mut last, mut pairs) = (BTreeMap::new(), BTreeMap::new(), backwards.iter());
        let mut spans = Vec::new();
        for (item, span) in timing.items.iter().enumerate() {
            let shape = &of["shapes"][shapes[item] as usize];
            let task = PLAN.ranks[number].items[item].0;
            // A stream is known by what runs on it: sends and receives by kind and peer.
            let stream = match shape[1].as_u64().expect("a category") {
                category @ 7..=9 => (category, shape[4].as_u64()),
                _ => (0, None),
            };
            let end = ends.entry(stream).or_insert(0_i64);
            let start = *end + starts[item];
            *end = start + shape[6].as_i64().expect("a duration");
            assert_eq!((start as u64, *end as u64), (span.start.0, span.end.0), "{task}");
            spans.push((start as u64, *end as u64));
            let last: &mut (i64, i64) = last.entry(shapes[item]).or_default();
            last.0 += micros[item];
            let stage = shape[2].as_u64().expect("a stage");
            let name = shape[0].as_str().expect("a name");
            let named = match task {
                Task::FB(..) => {
                    last.1 += pairs.next().expect("a backward");
                    format!("FB({stage},{};{},{})", last.0, shape[3], last.1)
                }
                Task::ReduceGrads(_) | Task::Update(_) | Task::GatherParams(_) => format!("{name}({stage})"),
                Task::SendAct(..) | Task::SendGrad(..) => format!("{name}({stage},{}) to rank {}", last.0, shape[4]),
                Task::RecvAct(..) | Task::RecvGrad(..) => format!("{name}({stage},{}) from rank {}", last.0, shape[4]),
                _ => format!("{name}({stage},{})", last.0),
            };
            assert_eq!(named, task.to_string());
        }

        let mut at = 0;
        let causes = numbers(&rank["cause"]);
        for (k, gap) in timing.gaps.iter().enumerate() {
            at += rank["gap"][k].as_u64().expect("items");
            assert_eq!(gap.before.map_or(timing.items.len() as u64, u64::from), at);
            let end = spans.get(at as usize).map_or(simulation.step.0, |span| span.0);
            assert_eq!((gap.span.end.0, &rank["idle"][k]), (end, &Value::from(gap.idle.0)));
            let cause = &of["causes"][causes[k] as usize];
            assert_eq!(cause[0], gap.cause.to_string());
            assert_eq!(cause[1].as_u64(), gap.item.map(|(rank, _)| u64::from(rank)));
            assert_eq!(rank["awaited"][k].as_u64(), gap.item.map(|(_, item)| u64::from(item)));
        }

        let bytes =
            |of: &Value| -> u64 { of.as_array().expect("kinds").iter().filter_map(|kind| kind[1].as_u64()).sum() };
        let [loads, untils] = ["load", "until"].map(|key| numbers(&rank[key]));
        let mut events = Vec::new();
        let mut item = 0;
        for k in 0..loads.len() {
            item += loads[k] as usize;
            let held = bytes(&of["breakdowns"][rank["breakdown"][k].as_u64().expect("a breakdown") as usize]);
            let to = if untils[k] == 0 { simulation.step.0 } else { spans[item + untils[k] as usize - 1].1 };
            if spans[item].0 < to {
                events.push((spans[item].0, true, held));
                events.push((to, false, held));
            }
        }
        events.sort_unstable();
        let (mut live, mut most) = (bytes(&rank["fixed"]), 0);
        for (_, starts, held) in events {
            live = if starts { live + held } else { live - held };
            most = most.max(live);
        }
        assert_eq!(most, memory(&PLAN, &simulation)[number].peak.0);
        assert_eq!(rank["peak"][0], most);
    }
}

/// The numbers in the page's text, under the keys of the JSON.
#[test]
fn the_text_has_the_numbers_of_the_json() {
    let folder = folder(&PLAN);
    let json: Value = serde_json::from_str(&done(folder.path(), &["simulate", "plan.ron", "--json"])).expect("JSON");
    let printed = done(folder.path(), &["simulate", "plan.ron"]);
    // Written beside what is printed otherwise.
    assert_eq!(done(folder.path(), &["simulate", "plan.ron", "--report", "report.html"]), printed);
    let page = fs::read_to_string(folder.path().join("report.html")).expect("the page");
    for key in ["step_ns", "mfu", "tokens_per_s", "bubble_share", "exposed_share", "timetable_makespan_ns"] {
        assert!(page.contains(&format!("<dd data-{key}=\"{}\">", json[key])), "{key}");
    }
    for (number, rank) in json["ranks"].as_array().expect("ranks").iter().enumerate() {
        let row = page.split(&format!("<tr data-rank=\"{number}\">")).nth(1).and_then(|row| row.split("</tr>").next());
        let row = row.expect("the rank's row");
        for key in ["busy_ns", "communication_ns", "exposed_ns", "bubble_ns"] {
            assert!(row.contains(&format!("data-{key}=\"{}\"", rank[key])), "{key} of rank {number}: {row}");
        }
        assert!(row.contains(&format!("data-need_bytes=\"{}\"", rank["memory"]["need_bytes"])), "{row}");
    }
    // Nothing is loaded from anywhere: the one address is the name of a format.
    let addresses = page.replace("http://www.w3.org/2000/svg", "");
    for outside in ["http:", "https:", " src=", " href=", "url(", "@import"] {
        assert!(!addresses.contains(outside), "{outside}");
    }
}

#[test]
fn several_plans_are_compared() {
    let folder = folder(&PLAN);
    let mut other = PLAN.clone();
    other.origin.schedule = "another".to_owned();
    other.origin.tokens_per_step *= 2;
    other.seal();
    fs::write(folder.path().join("other.ron"), other.to_ron()).expect("a plan written");
    let args = ["simulate", "plan.ron", "--report", "-", "--against", "other.ron", "--against", "plan.ron"];
    let page = done(folder.path(), &args);
    assert_eq!(data(&page)["plans"].as_array().map(Vec::len), Some(3));
    let table = page.split("<section id=\"comparison\">").nth(1).and_then(|rest| rest.split("</section>").next());
    let table = table.expect("a comparison");
    let tokens = table.split("tokens/s</th>").nth(1).and_then(|rest| rest.split("</tr>").next()).expect("a row");
    assert!(tokens.contains("<small>+100.0 %</small>") && tokens.contains("<small>+0.0 %</small>"), "{tokens}");
    assert!(table.contains("another") && table.contains("other.ron"), "{table}");
}

/// No name or number of a plan becomes markup or script, and none is lost.
#[test]
fn hostile_plans_make_harmless_pages() {
    let name = "</script><script>alert(1)</script><!--<img src=x onerror=alert(2)>\"'&{{data}}\u{1}\u{2028}";
    let mut plan = PLAN.clone();
    plan.model.name = name.to_owned();
    for text in [&mut plan.origin.cluster, &mut plan.origin.schedule, &mut plan.origin.compiler] {
        *text = name.to_owned();
    }
    plan.machine.gpu = name.to_owned();
    for stage in &mut plan.stages {
        stage.parameters = Bytes(u64::MAX);
        stage.output = Bytes(u64::MAX);
    }
    plan.seal();
    let [folder, plain] = [&plan, &*PLAN].map(folder);
    let file = "</script><img src=x>'\".ron".replace('/', "\u{2215}");
    fs::copy(folder.path().join("plan.ron"), folder.path().join(&file)).expect("a copy");
    let args = ["simulate", "plan.ron", "--report", "-", "--against", &file];
    let page = done(folder.path(), &args);
    let plain = done(plain.path(), &["simulate", "plan.ron", "--report", "-", "--against", "plan.ron"]);
    for markup in ["<script", "</script", "<!--", "<img"] {
        assert_eq!(page.matches(markup).count(), plain.matches(markup).count(), "{markup}");
    }
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"));
    assert_eq!(data(&page)["plans"][1]["name"], file);
    let svg = done(folder.path(), &["simulate", "plan.ron", "--svg", "-"]);
    assert!(!svg.contains("<script") && !svg.contains('\u{1}') && svg.contains("&lt;/script&gt;"));
}

#[test]
fn the_figure_for_papers() {
    let folder = folder(&PLAN);
    let svg = done(folder.path(), &["simulate", "plan.ron", "--svg", "-"]);
    assert_eq!(svg, done(folder.path(), &["simulate", "plan.ron", "--svg", "-"]));
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.bind(|| insta::assert_snapshot!("figure_of_tiny", svg));
}

#[test]
fn what_was_measured_is_matched_item_by_item() {
    let simulation = simulate(&PLAN).expect("times");
    let folder = folder(&PLAN);
    let good = trace(&PLAN, &simulation);
    let write =
        |trace: &Value| fs::write(folder.path().join("trace.json"), trace.to_string()).expect("a trace written");
    write(&good);
    let args = ["simulate", "plan.ron", "--report", "-", "--measured", "trace.json"];
    let page = done(folder.path(), &args);
    let measured = &data(&page)["plans"][0]["ranks"][1]["measured"];
    for (item, span) in simulation.ranks[1].items.iter().enumerate() {
        assert_eq!(measured[0][item], span.start.0 + span.start.0 / 10);
        assert_eq!(measured[1][item], span.end.0 + span.end.0 / 10);
    }
    assert!(page.contains("<section id=\"measured\">") && page.contains("<td class=\"n\">-9.1 %</td>"));

    // What is no trace of this plan, or lacks something, or has too much, is none.
    let refused = |edit: &dyn Fn(&mut Value)| {
        let mut trace = good.clone();
        edit(&mut trace);
        write(&trace);
        refusal(folder.path(), &args)
    };
    let events = |trace: &mut Value, edit: &dyn Fn(&mut Vec<Value>)| {
        edit(trace["traceEvents"].as_array_mut().expect("events"));
    };
    let slice = |events: &[Value]| events.iter().position(|event| event["ph"] == "X").expect("a slice");
    assert!(refused(&|trace| trace["otherData"]["plan"] = "0".into()).contains("is the trace of another plan"));
    assert!(refused(&|trace| events(trace, &|all| drop(all.remove(slice(all))))).contains("did not run"));
    assert!(refused(&|trace| events(trace, &|all| all.push(all[slice(all)].clone()))).contains("or not as often"));
    assert!(
        refused(&|trace| events(trace, &|all| {
            let at = slice(all);
            all[at]["ts"] = (-1).into()
        }))
        .contains("no time")
    );
    assert!(
        refused(&|trace| events(trace, &|all| {
            let at = slice(all);
            all[at]["dur"] = Value::Null
        }))
        .contains("no time")
    );
    assert!(
        refused(&|trace| events(trace, &|all| all.retain(|event| event["pid"] != 2 && event["pid"] != 6)))
            .contains("nothing of rank 1")
    );
    assert!(
        refused(&|trace| events(trace, &|all| all[0]["args"]["name"] = "rank 9, replica 0".into()))
            .contains("is no rank of the plan")
    );
    assert!(refused(&|trace| *trace = Value::from(3)).contains("is no trace of a run"));
    assert!(refused(&|trace| trace["traceEvents"] = Value::from("x")).contains("is no trace of a run"));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = folder(&PLAN);
    let plan = fs::read(folder.path().join("plan.ron")).expect("the plan");
    let refuse = |args: &[&str]| refusal(folder.path(), &[&["simulate", "plan.ron"], args].concat());
    assert!(refuse(&["--report", "plan.ron"]).contains("would be overwritten"));
    assert!(refuse(&["--svg", "./plan.ron"]).contains("would be overwritten"));
    assert!(refuse(&["--report", "a.html", "--svg", "./a.html"]).contains("cannot go to one file"));
    assert!(refuse(&["--report", "-", "--json"]).contains("cannot take two things"));
    assert!(refuse(&["--report", "nowhere/a.html"]).contains("no such directory"));
    assert!(refuse(&["--report", "a.html", "--against", "none.ron"]).contains("none.ron"));
    assert!(refuse(&["--against", "plan.ron"]).contains("--report"));
    assert!(refuse(&["--measured", "plan.ron"]).contains("--report"));
    assert!(refuse(&["--rank", "9", "--report", "a.html"]).contains("there is no rank 9"));
    assert_eq!(fs::read(folder.path().join("plan.ron")).expect("the plan"), plan);
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 1);
}
