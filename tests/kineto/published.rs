//! DeepSeek's published training trace, of which the annotations' streams, times, kernels and sums are at hand: a trace of that shape
//! gives its numbers back. Where in an annotation its kernels ran is not known; here they are spread evenly.

use std::fs;
use std::io::{Read as _, Write as _};

use dualweave::interop::kineto::{Breakdown, Part, Phase, components};
use dualweave::units::Nanos;

use super::writer::{Kernel, MAIN, Writer};
use super::{breakdown, row};

/// A row of the file: an annotation on a stream. Times are microseconds.
struct Seen {
    name: String,
    number: u64,
    stream: u64,
    kernels: u64,
    start: u64,
    end: u64,
    sum: u64,
}

fn seen() -> Vec<Seen> {
    let text = fs::read_to_string("tests/data/machine/deepseek_v3_train_chunk_pair.csv").expect("the file is there");
    let lines = text.lines().skip_while(|line| !line.starts_with("annotation,")).skip(1);
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let number = |at: usize| fields[at].parse().expect("a number");
            Seen {
                name: fields[0].to_owned(),
                number: number(1),
                stream: number(2),
                kernels: number(3),
                start: number(4),
                end: number(5),
                sum: number(6),
            }
        })
        .collect()
}

/// Start and time of each kernel: whole microseconds that give the sum, gaps as equal as they can be.
fn kernels(seen: &Seen) -> Vec<(u64, u64)> {
    let share = |total: u64, parts: u64, at: u64| total * (at + 1) / parts - total * at / parts;
    let idle = seen.end - seen.start - seen.sum;
    let mut at = seen.start;
    (0..seen.kernels)
        .map(|number| {
            let (start, time) = (at, share(seen.sum, seen.kernels, number));
            // Nothing behind the last.
            at += time
                + if seen.kernels > 1 && number + 1 < seen.kernels { share(idle, seen.kernels - 1, number) } else { 0 };
            (start, time)
        })
        .collect()
}

/// SMs that DeepSeek gave to communication, and left for computation.
const COMM_SMS: u64 = 20;
const COMPUTE_SMS: u64 = 112;

fn is_exchange(name: &str) -> bool {
    name.starts_with("dispatch") || name.starts_with("combine")
}

/// The trace, its annotations on streams or on the thread that launches.
fn trace(seen: &[Seen], on_streams: bool) -> String {
    let mut writer = Writer::default();
    // Annotations on the thread come one after the other, in the order of their numbers.
    let call = |number: u64| 1_000 * number;
    let mut last = None;
    for seen in seen {
        if on_streams {
            writer.gpu_annotation(&seen.name, seen.number, seen.stream, seen.start, seen.end - seen.start);
        } else if last.replace(seen.number) != Some(seen.number) {
            writer.annotation(&seen.name, MAIN, call(seen.number), 900);
        }
        let blocks = if is_exchange(&seen.name) { COMM_SMS } else { COMPUTE_SMS };
        for (at, (start, time)) in (0..).zip(kernels(seen)) {
            let kernel = Kernel { name: "kernel", stream: seen.stream, start, time, blocks };
            match on_streams {
                true => writer.kernel(kernel),
                false => writer.launched(kernel, MAIN, call(seen.number) + seen.stream + at),
            }
        }
    }
    writer.finish()
}

/// Microseconds in which a computation and an exchange run, one by one.
fn timeline(seen: &[Seen]) -> Vec<(bool, bool)> {
    let end = seen.iter().map(|seen| seen.end).max().expect("something");
    let mut line = vec![(false, false); end as usize];
    for seen in seen {
        for (start, time) in kernels(seen) {
            for moment in &mut line[start as usize..(start + time) as usize] {
                if is_exchange(&seen.name) { moment.1 = true } else { moment.0 = true }
            }
        }
    }
    line
}

fn micros(count: usize) -> Nanos {
    Nanos(1_000 * count as u64)
}

fn check(found: &Breakdown) {
    let seen = seen();
    let line = timeline(&seen);
    let count = |of: fn(&(bool, bool)) -> bool| micros(line.iter().filter(|moment| of(moment)).count());
    assert_eq!(found.span, micros(line.len()));
    assert_eq!(found.busy, count(|moment| moment.0));
    assert_eq!(found.communication, count(|moment| moment.1));
    assert_eq!(found.exposed, count(|moment| moment.1 && !moment.0));
    assert_eq!(found.bubble, count(|moment| !moment.0 && !moment.1));
    assert_eq!(found.busy + found.exposed + found.bubble, found.span);

    // What is known of the trace itself: the exchanges never wait within an annotation for long, so their time is the published one.
    assert_eq!(found.span, Nanos(129_012_000));
    assert!((found.communication.millis() - 114.5).abs() < 0.05, "{:?}", found.communication);

    for (name, part, phase) in [
        ("attn(F)", Part::Attention, Phase::F),
        ("attn(B)", Part::Attention, Phase::I),
        ("attn(W)", Part::Attention, Phase::W),
        ("mlp(F)", Part::Mlp, Phase::F),
        ("mlp(B)", Part::Mlp, Phase::I),
        ("mlp(W)", Part::Mlp, Phase::W),
        ("dispatch(F)", Part::Dispatch, Phase::F),
        ("dispatch(B)", Part::Dispatch, Phase::B),
        ("combine(F)", Part::Combine, Phase::F),
        ("combine(B)", Part::Combine, Phase::B),
    ] {
        let (row, seen) = (row(found, part, Some(phase)), seen.iter().filter(|seen| seen.name == name));
        let sum = |of: fn(&Seen) -> u64| seen.clone().map(of).sum::<u64>();
        assert_eq!((row.runs, row.ops), (4, sum(|seen| seen.kernels)), "{name}");
        assert_eq!(row.total, micros(sum(|seen| seen.sum) as usize), "{name}");
        // Only W of the experts runs on two streams.
        match name {
            "mlp(W)" => {
                assert!(row.busy < row.total && row.streams.len() == 2);
                let main = seen.clone().filter(|seen| seen.stream == 7).map(|seen| seen.sum).sum::<u64>();
                assert!(row.busy >= micros(main as usize));
            }
            _ => assert!(row.busy == row.total && row.streams.len() == 1, "{name}"),
        }
        assert_eq!(row.sms, Some(if is_exchange(name) { COMM_SMS } else { COMPUTE_SMS }), "{name}");
        assert_eq!(row.communicates, is_exchange(name), "{name}");
    }
    assert_eq!(found.unnamed(), Nanos::ZERO);
    // In the published trace computation runs for 124.3 ms, and 4.2 ms of communication have none beside them. Spread evenly, kernels of
    // W on its two streams run at once where in truth one of them often waits: so computation is somewhat less here.
    assert!((found.busy.millis() - 124.3).abs() < 2.5, "{}", found.busy);
    assert!((found.exposed.millis() - 4.2).abs() < 2.5, "{}", found.exposed);
    // `machine::LAUNCH` is 2.0 µs, from the same table.
    assert!(found.gap.is_some_and(|gap| (1_900..2_300).contains(&gap.0)), "{:?}", found.gap);
}

#[test]
fn its_numbers_come_back() {
    let seen = seen();
    for on_streams in [true, false] {
        let found = breakdown(trace(&seen, on_streams).as_bytes()).expect("a trace");
        check(&found);
        assert_eq!((found.sms, found.gpu.as_deref(), found.rank), (Some(132), Some("NVIDIA H800"), None));
    }
}

/// The example is this trace. `UPDATE_EXAMPLES=1` writes it anew.
#[test]
fn the_example_is_this_trace() {
    let (path, text) = ("examples/traces/deepseek-v3.json.gz", trace(&seen(), true));
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        let file = fs::File::create(path).expect("the example can be written");
        let mut packed = flate2::write::GzEncoder::new(file, flate2::Compression::best());
        packed.write_all(text.as_bytes()).expect("the example can be written");
        packed.finish().expect("the example can be written");
    }
    let mut example = String::new();
    let file = fs::File::open(path).expect("the example is there");
    flate2::read::GzDecoder::new(file).read_to_string(&mut example).expect("it is packed");
    assert!(example == text, "{path} is not what the table gives");
}

/// The example's durations, which were worked out from the same table, are those that come out; but for the weight gradients of the
/// experts, of which the example counts one stream alone.
#[test]
fn the_example_comes_out() {
    let found = breakdown(trace(&seen(), true).as_bytes()).expect("a trace");
    let made = components("trace.json", &found).expect("all components");
    let rows = |text: &str| -> Vec<(String, f64)> {
        let lines = text.lines().filter(|line| !line.starts_with('#') && *line != "component,phase,ms");
        let mut rows: Vec<_> = lines
            .map(|line| {
                let (name, ms) = line.rsplit_once(',').expect("three fields");
                (name.to_owned(), ms.parse().expect("a number"))
            })
            .collect();
        rows.sort_by(|one: &(String, f64), other| one.0.cmp(&other.0));
        rows
    };
    let example = fs::read_to_string("examples/deepseek-v3/components.csv").expect("the example is there");
    let (made, example) = (rows(&made), rows(&example));
    assert_eq!(made.len(), example.len());
    for ((name, made), (same, example)) in made.iter().zip(&example) {
        assert_eq!(name, same);
        match name.as_str() {
            "mlp,W" => assert!((example + 0.5..example + 2.0).contains(made), "{made}"),
            _ => assert!((made - example).abs() < 0.00501, "{name}: {made} and {example}"),
        }
    }
}
