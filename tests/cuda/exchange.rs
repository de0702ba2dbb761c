//! The exchange of tokens and experts, between places on one GPU and on two, against where every row has to be.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use dualweave::runtime::cuda::exchange::{Member, Routed, group, member, most_rows};
use dualweave::runtime::cuda::nccl::{Communicator, unique_id};
use dualweave::runtime::cuda::ops::exchange::{Returned, sum};
use dualweave::runtime::cuda::stream::Priority;
use dualweave::runtime::cuda::watch::Watch;
use dualweave::runtime::cuda::{Bf16, Device, Element, Event, Slice, Stream, device};

use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};

/// How long to wait for another member.
pub const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy)]
pub struct Case {
    pub places: usize,
    pub experts: usize,
    pub tokens: usize,
    pub top_k: usize,
    pub hidden: usize,
    /// Tokens of the first of two parts; none: one part.
    pub first: Option<usize>,
}

/// How tokens choose.
#[derive(Clone, Copy)]
pub enum Choice {
    Evenly,
    /// All choose the last expert, and others of the first half.
    OneHot,
    /// Only of each second expert.
    HalfEmpty,
}

impl Case {
    pub fn parts(&self) -> Vec<Range<usize>> {
        let first = 0..self.first.unwrap_or(self.tokens);
        let second = self.first.map(|first| first..self.tokens);
        std::iter::once(first).chain(second).collect()
    }

    fn local(&self) -> usize {
        self.experts / self.places
    }

    /// Experts of each token, ascending. Evenly where there are too few of the kind.
    pub fn choose(&self, choice: Choice, random: &mut Random) -> Vec<u32> {
        let all = self.experts as u32;
        let mut from: Vec<u32> = match choice {
            Choice::Evenly => (0..all).collect(),
            Choice::OneHot => (0..all / 2).collect(),
            Choice::HalfEmpty => (0..all).step_by(2).collect(),
        };
        if from.len() < self.top_k {
            from = (0..all).collect();
        }
        let mut token = || {
            for place in 0..self.top_k {
                let other = place + (random.bits() % (from.len() - place) as u64) as usize;
                from.swap(place, other);
            }
            let mut chosen = from[..self.top_k].to_vec();
            if matches!(choice, Choice::OneHot) && !chosen.contains(&(all - 1)) {
                chosen[0] = all - 1;
            }
            chosen.sort_unstable();
            chosen
        };
        (0..self.tokens).flat_map(|_| token()).collect()
    }

    /// Rows of a part at a place, each (place, token, slot) that it comes from; and where the rows of each expert there begin.
    fn rows(&self, experts: &[Vec<u32>], tokens: Range<usize>, place: usize) -> (Vec<[usize; 3]>, Vec<u32>) {
        let (mut rows, mut offsets) = (Vec::new(), vec![0]);
        for expert in place * self.local()..(place + 1) * self.local() {
            for (source, experts) in experts.iter().enumerate() {
                for token in tokens.clone() {
                    let chosen = &experts[token * self.top_k..(token + 1) * self.top_k];
                    let slot = chosen.iter().position(|&chosen| chosen as usize == expert);
                    rows.extend(slot.map(|slot| [source, token, slot]));
                }
            }
            offsets.push(rows.len() as u32);
        }
        (rows, offsets)
    }
}

/// Values on the GPU and on the host.
pub struct Both<E> {
    pub host: Vec<E>,
    pub gpu: Slice<E>,
}

impl<E: Element> Both<E> {
    fn given(gpu: &mut Gpu, host: Vec<E>) -> Self {
        Self { gpu: gpu.given(&host), host }
    }
}

fn bf16(gpu: &mut Gpu, random: &mut Random, count: usize) -> Both<Bf16> {
    let values = random.bf16(count, 1.0).0;
    Both::given(gpu, values)
}

fn f32(gpu: &mut Gpu, random: &mut Random, count: usize) -> Both<f32> {
    let values = random.f32(count, 0.0, 1.0).0;
    Both::given(gpu, values)
}

/// A layer of one place: what is given, and poisoned room for all results.
pub struct Layer {
    pub experts: Vec<u32>,
    pub weights: Both<f32>,
    pub x: Both<Bf16>,
    pub dy: Both<Bf16>,
    pub returned: Slice<Bf16>,
    pub d_returned: Slice<Bf16>,
    pub d_weights: Slice<f32>,
    pub parts: Vec<Part>,
}

pub struct Part {
    pub routed: Routed,
    pub arrived: Slice<Bf16>,
    pub d_arrived: Slice<Bf16>,
    pub y: Both<Bf16>,
    pub dx: Both<Bf16>,
    pub d_row_weights: Both<f32>,
}

/// Room for the results of routing `tokens`, with `capacity` rows.
pub fn routed(
    gpu: &mut Gpu,
    case: &Case,
    tokens: Range<usize>,
    experts: &[u32],
    weights: Slice<f32>,
    capacity: usize,
) -> Routed {
    let entries = tokens.start * case.top_k..tokens.end * case.top_k;
    Routed {
        first: tokens.start,
        experts: gpu.given(&experts[entries.clone()]),
        weights: weights.part(entries.clone()),
        rows: gpu.poisoned(entries.len()),
        offsets: gpu.poisoned(case.local() + 1),
        sources: gpu.poisoned(capacity),
        row_weights: gpu.poisoned(capacity),
    }
}

impl Layer {
    pub fn new(gpu: &mut Gpu, case: &Case, choice: Choice, random: &mut Random) -> Self {
        let Case { tokens, top_k, hidden, .. } = *case;
        let experts = case.choose(choice, random);
        let weights = f32(gpu, random, tokens * top_k);
        let part = |range: Range<usize>| {
            let capacity = most_rows(case.places, case.experts, range.len(), top_k);
            Part {
                routed: routed(gpu, case, range, &experts, weights.gpu, capacity),
                arrived: gpu.poisoned(capacity * hidden),
                d_arrived: gpu.poisoned(capacity * hidden),
                y: bf16(gpu, random, capacity * hidden),
                dx: bf16(gpu, random, capacity * hidden),
                d_row_weights: f32(gpu, random, capacity),
            }
        };
        let parts = case.parts().into_iter().map(part).collect();
        Self {
            parts,
            x: bf16(gpu, random, tokens * hidden),
            dy: bf16(gpu, random, tokens * hidden),
            returned: gpu.poisoned(tokens * top_k * hidden),
            d_returned: gpu.poisoned(tokens * top_k * hidden),
            d_weights: gpu.poisoned(tokens * top_k),
            experts,
            weights,
        }
    }
}

/// All exchanges of all layers, forward and backward, without a wait between them.
fn run(gpu: &Gpu, case: &Case, member: &mut Member, layers: &[Layer], mut random: Random) {
    let (stream, hidden, watch) = (&gpu.stream, case.hidden, Watch::new(PATIENCE));
    let on = (stream, &watch);
    let mut sms = || 2 + (random.bits() % 19) as u32;
    for layer in layers {
        for (part, tokens) in layer.parts.iter().zip(case.parts()) {
            let arrived = part.arrived;
            member.dispatch(on, sms(), layer.x.gpu, hidden, tokens, &part.routed, arrived).expect("launched");
        }
        for part in &layer.parts {
            member.combine(on, sms(), part.y.gpu, hidden, &part.routed, layer.returned).expect("launched");
        }
    }
    for layer in layers.iter().rev() {
        for (part, tokens) in layer.parts.iter().zip(case.parts()) {
            let (dy, arrived) = (layer.dy.gpu, part.d_arrived);
            member.combine_gradient(on, sms(), dy, hidden, tokens, &part.routed, arrived).expect("launched");
        }
        for part in &layer.parts {
            let (from, to) = ((part.dx.gpu, part.d_row_weights.gpu), (layer.d_returned, layer.d_weights));
            member.dispatch_gradient(on, sms(), from, hidden, &part.routed, to).expect("launched");
        }
    }
    stream.synchronize().expect("all exchanges");
    assert_eq!(member.overflow(stream).expect("read"), None);
}

/// Compares bits, which say where they differ.
pub fn assert_same<E: Element + PartialEq + std::fmt::Debug>(what: &str, results: &[E], expected: &[E]) {
    assert_eq!(results.len(), expected.len(), "{what}");
    let differs = results.iter().zip(expected).position(|(result, expected)| result != expected);
    assert!(
        differs.is_none(),
        "{what}: element {differs:?} of {} is {:?}, not {:?}",
        results.len(),
        differs.map(|at| results[at]),
        differs.map(|at| expected[at])
    );
}

const POISON: Bf16 = Bf16(0xffff);

/// Checks all that has arrived in a layer, at all places. `packed`: between processes rows have numbers of their own.
fn check(case: &Case, gpus: &[Gpu], layers: &[&Layer], packed: bool) {
    let Case { tokens, top_k, hidden, places, .. } = *case;
    let experts: Vec<Vec<u32>> = layers.iter().map(|layer| layer.experts.clone()).collect();
    let of = |all: &[Bf16], row: usize| all[row * hidden..(row + 1) * hidden].to_vec();
    let entries = tokens * top_k;
    let mut returned = vec![vec![POISON; entries * hidden]; places];
    let mut d_returned = returned.clone();
    let mut d_weights = vec![vec![f32::NAN; entries]; places];
    for (index, range) in case.parts().into_iter().enumerate() {
        let mut found: Vec<Vec<u32>> = vec![vec![u32::MAX; range.len() * top_k]; places];
        for (place, gpu) in gpus.iter().enumerate() {
            let part = &layers[place].parts[index];
            let what = |of: &str| format!("{of} of part {index} at place {place} of {places}");
            let (rows, offsets) = case.rows(&experts, range.clone(), place);
            let capacity = part.routed.capacity();
            let mut sources = vec![u32::MAX; capacity];
            let mut weights = vec![u32::MAX; capacity];
            let (mut arrived, mut d_arrived) = (vec![POISON; capacity * hidden], vec![POISON; capacity * hidden]);
            let mut from_there = vec![0; places];
            for (row, &[source, token, slot]) in rows.iter().enumerate() {
                let (from, entry) = (layers[source], token * top_k + slot);
                let number = from_there[source];
                from_there[source] += 1;
                let here = row * hidden..(row + 1) * hidden;
                let there = entry * hidden..(entry + 1) * hidden;
                sources[row] = (source * entries + if packed { number } else { entry }) as u32;
                weights[row] = from.weights.host[entry].to_bits();
                arrived[here.clone()].copy_from_slice(&of(&from.x.host, token));
                d_arrived[here].copy_from_slice(&of(&from.dy.host, token));
                found[source][entry - range.start * top_k] = if packed { number } else { row } as u32;
                returned[source][there.clone()].copy_from_slice(&of(&part.y.host, row));
                d_returned[source][there].copy_from_slice(&of(&part.dx.host, row));
                d_weights[source][entry] = part.d_row_weights.host[row];
            }
            let stream = &gpu.stream;
            let read = |slice: Slice<u32>| slice.read(stream).expect("results");
            assert_same(&what("offsets"), &read(part.routed.offsets), &offsets);
            assert_same(&what("sources"), &read(part.routed.sources), &sources);
            assert_same(&what("weights"), &read(part.routed.row_weights.cast()), &weights);
            assert_same(&what("rows of x"), &part.arrived.read(stream).expect("results"), &arrived);
            assert_same(&what("rows of dy"), &part.d_arrived.read(stream).expect("results"), &d_arrived);
        }
        for (place, found) in found.iter().enumerate() {
            let rows = layers[place].parts[index].routed.rows.read(&gpus[place].stream).expect("results");
            assert_same(&format!("rows found for part {index} of place {place}"), &rows, found);
        }
    }
    for (place, (gpu, layer)) in gpus.iter().zip(layers).enumerate() {
        let read = |slice: Slice<Bf16>| slice.read(&gpu.stream).expect("results");
        assert_same(&format!("what came back to {place}"), &read(layer.returned), &returned[place]);
        assert_same(&format!("gradients that came back to {place}"), &read(layer.d_returned), &d_returned[place]);
        let numbers = layer.d_weights.read(&gpu.stream).expect("results");
        assert_same(&format!("gradients of weights at {place}"), &numbers, &d_weights[place]);
    }
}

/// A place on each of so many devices in turn.
pub fn gpus(devices: &[Arc<Device>], places: usize) -> Vec<Gpu> {
    (0..places).map(|place| Gpu::on(&devices[place % devices.len()])).collect()
}

pub fn members(gpus: &[Gpu], case: &Case) -> Vec<Member> {
    let devices: Vec<_> = gpus.iter().map(|gpu| Arc::clone(&gpu.device)).collect();
    group(&devices, case.experts, case.tokens, case.top_k).expect("a group")
}

/// The places of several processes, in one: each on a GPU of its own.
fn members_of_processes(gpus: &[Gpu], case: &Case) -> Vec<Member> {
    let id = unique_id().expect("NCCL");
    let others = |place: usize| (0..case.places).filter(|&other| other != place).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let make = move |(place, gpu): (usize, &Gpu)| {
            let watch = Watch::new(PATIENCE);
            let made = Communicator::new(&gpu.device, id, (place, case.places), 8, "rows".to_owned(), &watch);
            let mut communicator = made.expect("a communicator");
            let (stream, others) = (Stream::new(&gpu.device, Priority::Low).expect("a stream"), others(place));
            communicator.connect(&stream, (&others, &others), true, &watch).expect("connections");
            member(communicator, case.experts, case.tokens, case.top_k, case.hidden).expect("a member")
        };
        let threads = gpus.iter().enumerate().map(|of| scope.spawn(move || make(of)));
        threads.collect::<Vec<_>>().into_iter().map(|thread| thread.join().expect("a member")).collect()
    })
}

/// Each place a thread, as ranks are; or as processes are.
fn exchanges(devices: &[Arc<Device>], case: Case, processes: bool) {
    let mut gpus = gpus(devices, case.places);
    let mut members = if processes { members_of_processes(&gpus, &case) } else { members(&gpus, &case) };
    let mut random = Random::new(case.tokens as u64);
    let choices = [Choice::Evenly, Choice::OneHot, Choice::HalfEmpty];
    let layers: Vec<Vec<Layer>> = gpus
        .iter_mut()
        .map(|gpu| choices.iter().map(|&choice| Layer::new(gpu, &case, choice, &mut random)).collect())
        .collect();
    std::thread::scope(|scope| {
        for (place, ((gpu, member), layers)) in gpus.iter().zip(&mut members).zip(&layers).enumerate() {
            scope.spawn(move || run(gpu, &case, member, layers, Random::new(place as u64)));
        }
    });
    for layer in 0..choices.len() {
        check(&case, &gpus, &layers.iter().map(|layers| &layers[layer]).collect::<Vec<_>>(), processes);
    }
}

pub const CASES: [Case; 9] = [
    Case { places: 1, experts: 4, tokens: 1, top_k: 4, hidden: 8, first: None },
    Case { places: 1, experts: 8, tokens: 65, top_k: 2, hidden: 128, first: Some(40) },
    Case { places: 2, experts: 8, tokens: 37, top_k: 2, hidden: 64, first: Some(18) },
    Case { places: 2, experts: 4, tokens: 9, top_k: 1, hidden: 7168, first: None },
    Case { places: 2, experts: 256, tokens: 301, top_k: 8, hidden: 256, first: Some(301) },
    Case { places: 2, experts: 16, tokens: 2500, top_k: 4, hidden: 8, first: None },
    Case { places: 4, experts: 8, tokens: 100, top_k: 3, hidden: 1032, first: Some(1) },
    Case { places: 4, experts: 1024, tokens: 70, top_k: 16, hidden: 520, first: Some(32) },
    Case { places: 4, experts: 4, tokens: 33, top_k: 2, hidden: 16, first: None },
];

#[test]
fn rows_arrive_where_they_belong_on_one_gpu() {
    let Some(gpu) = gpu() else { return };
    CASES.into_iter().for_each(|case| exchanges(&[Arc::clone(&gpu.device)], case, false));
}

#[test]
fn rows_arrive_where_they_belong_on_two_gpus() {
    let Some(gpu) = gpu() else { return };
    if device::count().is_ok_and(|count| count < 2) {
        eprintln!("skipped: one GPU");
        return;
    }
    let devices = [Arc::clone(&gpu.device), Device::open(1).expect("a second GPU")];
    CASES.into_iter().filter(|case| case.places > 1).for_each(|case| exchanges(&devices, case, false));
}

/// As between processes: by NCCL, for which each place needs a GPU of its own.
#[test]
fn rows_arrive_where_they_belong_by_nccl() {
    let Some(gpu) = gpu() else { return };
    if device::count().is_ok_and(|count| count < 2) {
        eprintln!("skipped: one GPU");
        return;
    }
    let devices = [Arc::clone(&gpu.device), Device::open(1).expect("a second GPU")];
    CASES.into_iter().filter(|case| case.places == 2).for_each(|case| exchanges(&devices, case, true));
}

/// With too little room nothing is written outside of it, the rows that have room are right, and the next exchange is.
#[test]
fn rows_without_room_are_counted_and_left_out() {
    const CAPACITY: usize = 5;
    let Some(gpu) = gpu() else { return };
    let case = Case { places: 2, experts: 4, tokens: 20, top_k: 2, hidden: 32, first: None };
    let mut gpus = gpus(&[Arc::clone(&gpu.device)], case.places);
    let mut members = members(&gpus, &case);
    let mut random = Random::new(7);
    let mut layers: Vec<Layer> =
        gpus.iter_mut().map(|gpu| Layer::new(gpu, &case, Choice::Evenly, &mut random)).collect();
    let experts: Vec<Vec<u32>> = layers.iter().map(|layer| layer.experts.clone()).collect();
    let small: Vec<(Routed, Slice<Bf16>)> = gpus
        .iter_mut()
        .zip(&layers)
        .map(|(gpu, layer)| {
            let small = routed(gpu, &case, 0..case.tokens, &layer.experts, layer.weights.gpu, 2 * CAPACITY);
            (small, gpu.poisoned(2 * CAPACITY * case.hidden))
        })
        .collect();
    std::thread::scope(|scope| {
        for ((member, gpu), (layer, (routed, arrived))) in members.iter_mut().zip(&gpus).zip(layers.iter().zip(&small))
        {
            scope.spawn(move || {
                let routed = Routed {
                    sources: routed.sources.part(0..CAPACITY),
                    row_weights: routed.row_weights.part(0..CAPACITY),
                    ..*routed
                };
                let (watch, x, hidden) = (Watch::new(PATIENCE), layer.x.gpu, case.hidden);
                let (on, arrived) = ((&gpu.stream, &watch), arrived.part(0..CAPACITY * hidden));
                member.dispatch(on, 4, x, hidden, 0..case.tokens, &routed, arrived).expect("launched");
                member.combine(on, 4, arrived, hidden, &routed, layer.d_returned).expect("launched");
                gpu.stream.synchronize().expect("both exchanges");
            });
        }
    });
    for (place, gpu) in gpus.iter().enumerate() {
        let (rows, offsets) = case.rows(&experts, 0..case.tokens, place);
        let overflow = members[place].overflow(&gpu.stream).expect("read");
        assert_eq!(overflow, Some(rows.len()), "rows of place {place}");
        assert_eq!(members[place].overflow(&gpu.stream).expect("read"), None, "told once");
        let (routed, arrived) = &small[place];
        let offsets: Vec<u32> = offsets.iter().map(|&offset| offset.min(CAPACITY as u32)).collect();
        assert_same("offsets", &routed.offsets.read(&gpu.stream).expect("read"), &offsets);
        let mut expected = vec![POISON; 2 * CAPACITY * case.hidden];
        let mut sources = vec![u32::MAX; 2 * CAPACITY];
        for (row, [source, token, slot]) in rows.into_iter().take(CAPACITY).enumerate() {
            let values = &layers[source].x.host[token * case.hidden..(token + 1) * case.hidden];
            expected[row * case.hidden..(row + 1) * case.hidden].copy_from_slice(values);
            sources[row] = ((source * case.tokens + token) * case.top_k + slot) as u32;
        }
        assert_same("rows with room", &arrived.read(&gpu.stream).expect("read"), &expected);
        assert_same("their sources", &routed.sources.read(&gpu.stream).expect("read"), &sources);
    }
    for (gpu, layer) in gpus.iter_mut().zip(&mut layers) {
        layer.d_returned = gpu.poisoned(layer.d_returned.len());
    }
    std::thread::scope(|scope| {
        for ((gpu, member), layer) in gpus.iter().zip(&mut members).zip(&layers) {
            let case = &case;
            scope.spawn(move || run(gpu, case, member, std::slice::from_ref(layer), Random::new(1)));
        }
    });
    check(&case, &gpus, &layers.iter().collect::<Vec<_>>(), false);
}

/// A member whose partner never comes gives up, and says so.
#[test]
fn a_member_that_is_left_alone_gives_up() {
    let Some(gpu) = gpu() else { return };
    let case = Case { places: 2, experts: 4, tokens: 20, top_k: 2, hidden: 32, first: None };
    let mut gpus = gpus(&[Arc::clone(&gpu.device)], case.places);
    let mut members = members(&gpus, &case);
    let layer = Layer::new(&mut gpus[0], &case, Choice::Evenly, &mut Random::new(8));
    let watch = Watch::new(Duration::from_millis(50));
    let (on, part) = ((&gpus[0].stream, &watch), &layer.parts[0]);
    let alone = members[0].dispatch(on, 4, layer.x.gpu, case.hidden, 0..case.tokens, &part.routed, part.arrived);
    let error = alone.expect_err("nobody else comes");
    assert!(error.message().contains("has not been reached"), "{error}");
}

#[test]
fn rows_that_came_back_are_added_up() {
    let Some(mut gpu) = gpu() else { return };
    let mut random = Random::new(5);
    for (tokens, top_k, hidden) in [(1, 1, 8), (33, 8, 264), (100, 6, 1024), (7, 16, 7168)] {
        let (returned, exact) = random.bf16(tokens * top_k * hidden, 1.0);
        let (one, exact_one) = random.bf16(tokens * hidden, 1.0);
        let (other, exact_other) = random.bf16(tokens * hidden, 1.0);
        let returned = gpu.given(&returned);
        let (one, other) = (gpu.given(&one), gpu.given(&other));
        for with in 0..4 {
            let add =
                [if with & 1 == 1 { one } else { Slice::none() }, if with & 2 == 2 { other } else { Slice::none() }];
            let expected: Vec<f64> = (0..tokens * hidden)
                .map(|at| {
                    let (token, column) = (at / hidden, at % hidden);
                    let rows = (0..top_k).map(|slot| exact[(token * top_k + slot) * hidden + column]).sum::<f64>();
                    let added = [(1, exact_one[at]), (2, exact_other[at])];
                    rows + added.iter().filter(|(bit, _)| with & bit == *bit).map(|(_, value)| value).sum::<f64>()
                })
                .collect();
            let mut before: Option<Vec<Bf16>> = None;
            for sms in [1, 132] {
                let y = gpu.poisoned(tokens * hidden);
                sum(&gpu.stream, sms, (Returned::ByToken(returned), top_k), hidden, add, y).expect("launched");
                let bits = y.read(&gpu.stream).expect("results");
                assert!(before.is_none_or(|before| before == bits), "the same bits with {sms} SMs");
                before = Some(bits);
                assert_close(&format!("{tokens} × {top_k} × {hidden}, {with}"), &gpu.floats(y), &expected, BF16);
            }
        }
    }
}

/// Bandwidth of dispatch, two places, by SMs. Half of the rows stay on their GPU.
#[test]
#[ignore = "a measurement"]
fn bandwidth_of_dispatch() {
    const TIMES: usize = 10;
    let Some(gpu) = gpu() else { return };
    let mut devices = vec![Arc::clone(&gpu.device)];
    if device::count().is_ok_and(|count| count > 1) {
        devices.push(Device::open(1).expect("a second GPU"));
    }
    let case = Case { places: 2, experts: 256, tokens: 4096, top_k: 8, hidden: 7168, first: None };
    let capacity = 3 * case.tokens * case.top_k / 2;
    let mut gpus = gpus(&devices, case.places);
    let mut members = members(&gpus, &case);
    let mut random = Random::new(6);
    let given: Vec<(Slice<Bf16>, Routed, Slice<Bf16>)> = gpus
        .iter_mut()
        .map(|gpu| {
            let experts = case.choose(Choice::Evenly, &mut random);
            let weights = f32(gpu, &mut random, case.tokens * case.top_k).gpu;
            let routed = routed(gpu, &case, 0..case.tokens, &experts, weights, capacity);
            let x: Slice<Bf16> = gpu.poisoned(case.tokens * case.hidden);
            (x, routed, gpu.poisoned(capacity * case.hidden))
        })
        .collect();
    for sms in [8, 20, 132] {
        let times: Vec<f64> = std::thread::scope(|scope| {
            let threads = gpus.iter().zip(&mut members).zip(&given).map(|((gpu, member), (x, routed, arrived))| {
                scope.spawn(move || {
                    let watch = Watch::new(PATIENCE);
                    let event = || Event::new(&gpu.device, true).expect("an event");
                    let (start, end) = (event(), event());
                    for time in 0..=TIMES {
                        let (on, tokens) = ((&gpu.stream, &watch), 0..case.tokens);
                        member.dispatch(on, sms, *x, case.hidden, tokens, routed, *arrived).expect("launched");
                        if time == 0 {
                            start.record(&gpu.stream).expect("recorded");
                        }
                    }
                    end.record(&gpu.stream).expect("recorded");
                    gpu.stream.synchronize().expect("all exchanges");
                    f64::from(end.since(&start).expect("timed")) / TIMES as f64
                })
            });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("measured")).collect()
        });
        let milliseconds = times[0];
        let bytes = (case.tokens * case.top_k * case.hidden * Bf16::BYTES) as f64;
        eprintln!(
            "{} GPUs, {sms} SMs: {milliseconds:.3} ms, {:.0} GB/s written by each place, half of it to the other",
            devices.len(),
            bytes / milliseconds / 1e6
        );
    }
    for (gpu, member) in gpus.iter().zip(&mut members) {
        assert_eq!(member.overflow(&gpu.stream).expect("read"), None);
    }
}
