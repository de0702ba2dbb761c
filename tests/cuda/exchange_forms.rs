//! Exchanges in FP8 and by copy engines, against those of the same rows in bf16 by SMs: the same rows in the same order, bit by bit.

use std::sync::Arc;

use dualweave::runtime::cuda::exchange::packed::Window;
use dualweave::runtime::cuda::exchange::{Arrived, Member, Routed};
use dualweave::runtime::cuda::ops::exchange::{Returned, sum};
use dualweave::runtime::cuda::ops::packed::{self, Found, OfAll, Values};
use dualweave::runtime::cuda::ops::quantise::{self, RowScales, Scale, tile_scales};
use dualweave::runtime::cuda::ops::{Rows, quantise::TILE};
use dualweave::runtime::cuda::product::Tiled;
use dualweave::runtime::cuda::watch::Watch;
use dualweave::runtime::cuda::{Bf16, Device, Element, Event, Fp8, Memory, Slice, device};

use crate::exchange::{CASES, Case, Choice, Layer, PATIENCE, Part, assert_same, gpus, members, routed};
use crate::gpu::{BF16, Gpu, Random, assert_close, gpu};

/// Memory that looks alike at all places; every byte of it is 0xff at first.
struct Shared {
    memory: Memory,
    used: usize,
}

impl Shared {
    fn new(gpu: &Gpu, bytes: usize) -> Self {
        let memory = Memory::new(&gpu.device, bytes).expect("room on the GPU");
        memory.all::<u8>().fill_bytes(&gpu.stream, 0xff).expect("memory is filled");
        gpu.stream.synchronize().expect("filled");
        Self { memory, used: 0 }
    }

    fn take<E: Element>(&mut self, count: usize) -> Slice<E> {
        let at = self.used;
        self.used = (at + count * E::BYTES).next_multiple_of(256);
        self.memory.at(at, count)
    }

    fn tiled(&mut self, rows: usize, hidden: usize) -> Tiled {
        Tiled { values: self.take(rows * hidden), scales: self.take(tile_scales(rows, hidden)) }
    }
}

/// Bytes that a layer needs of it, at most.
fn room(case: &Case) -> usize {
    let (entries, width) = (case.tokens * case.top_k * case.places, case.hidden);
    (1 << 16) + 40 * case.places * entries * (width + 16)
}

/// The same room for what routing finds, poisoned.
fn again(gpu: &mut Gpu, routed: &Routed) -> Routed {
    Routed {
        rows: gpu.poisoned(routed.rows.len()),
        offsets: gpu.poisoned(routed.offsets.len()),
        sources: gpu.poisoned(routed.sources.len()),
        row_weights: gpu.poisoned(routed.row_weights.len()),
        ..*routed
    }
}

fn assert_found(gpu: &Gpu, what: &str, ours: &Routed, theirs: &Routed) {
    let same = |of: &str, one: Slice<u32>, other: Slice<u32>| {
        let read = |slice: Slice<u32>| slice.read(&gpu.stream).expect("results");
        assert_same(&format!("{of} of {what}"), &read(one), &read(other));
    };
    same("rows", ours.rows, theirs.rows);
    same("offsets", ours.offsets, theirs.offsets);
    same("sources", ours.sources, theirs.sources);
    same("weights", ours.row_weights.cast(), theirs.row_weights.cast());
}

fn assert_bits<E: Element>(gpu: &Gpu, what: &str, ours: Slice<E>, theirs: Slice<E>) {
    let read = |slice: Slice<E>| slice.cast::<u8>().read(&gpu.stream).expect("results");
    assert_same(what, &read(ours), &read(theirs));
}

/// A part of a layer at a place, what is compared there.
struct Place<'a> {
    gpu: &'a mut Gpu,
    member: &'a mut Member,
    shared: &'a mut Shared,
    case: &'a Case,
}

impl Place<'_> {
    fn compare(&mut self, layer: &Layer, part: &Part, tokens: std::ops::Range<usize>) {
        let (hidden, watch) = (self.case.hidden, Watch::new(PATIENCE));
        let stream = &self.gpu.stream;
        let on = (stream, &watch);
        let dispatched = self.member.dispatch(on, 3, layer.x.gpu, hidden, tokens.clone(), &part.routed, part.arrived);
        dispatched.expect("launched");
        self.member.combine(on, 3, part.y.gpu, hidden, &part.routed, layer.returned).expect("launched");
        let gradient =
            self.member.combine_gradient(on, 3, layer.dy.gpu, hidden, tokens.clone(), &part.routed, part.d_arrived);
        gradient.expect("launched");
        let (from, to) = ((part.dx.gpu, part.d_row_weights.gpu), (layer.d_returned, layer.d_weights));
        self.member.dispatch_gradient(on, 3, from, hidden, &part.routed, to).expect("launched");
        self.gpu.stream.synchronize().expect("exchanges by SMs");
        self.by_copy_engines(layer, part, tokens.clone());
        if self.gpu.device.capability >= 89 && hidden.is_multiple_of(16) {
            self.in_fp8(layer, part, tokens);
        }
    }

    fn by_copy_engines(&mut self, layer: &Layer, part: &Part, tokens: std::ops::Range<usize>) {
        let Case { places, experts, top_k, hidden, .. } = *self.case;
        let (place, count) = (self.member.place(), tokens.len());
        let cut = self.member.cut(tokens.clone());
        let (rows, entries) = (part.routed.count(), count * top_k);
        let own_rows = tokens.start * hidden..tokens.end * hidden;
        let watch = Watch::new(PATIENCE);

        // There: all tokens with their experts and weights.
        let ours = again(self.gpu, &part.routed);
        let staged: Slice<Bf16> = self.shared.take(places * count * hidden);
        let (chosen, weights): (Slice<u32>, Slice<f32>) =
            (self.shared.take(places * entries), self.shared.take(places * entries));
        let words = self.gpu.poisoned(packed::scratch(experts, places, entries));
        let arrived: Slice<Bf16> = self.gpu.poisoned(part.arrived.len());
        let x = layer.x.gpu.part(own_rows.clone());
        let stream = &self.gpu.stream;
        let nth = |len: usize| place * len..(place + 1) * len;
        let copies = vec![
            (x.cast(), staged.part(nth(count * hidden)).cast()),
            (ours.experts.cast(), chosen.part(nth(entries)).cast()),
            (ours.weights.cast(), weights.part(nth(entries)).cast()),
        ];
        self.member.copy((stream, &watch), |_| copies.clone()).expect("copied");
        let found =
            Found { rows: ours.rows, offsets: ours.offsets, sources: ours.sources, row_weights: ours.row_weights };
        let (of_experts, of_weights) =
            (OfAll { own: ours.experts, staged: chosen }, OfAll { own: ours.weights, staged: weights });
        self.member.find((stream, 5), cut, of_experts, of_weights, &found, words).expect("launched");
        let all = OfAll { own: Values::Bf16(x), staged: Values::Bf16(staged) };
        packed::gather(stream, 5, cut, all, hidden, (ours.sources, ours.count()), Values::Bf16(arrived))
            .expect("launched");
        assert_found(self.gpu, "a dispatch by copy engines", &ours, &part.routed);
        assert_bits(self.gpu, "rows that copy engines brought", arrived, part.arrived);

        // Back: sums of each place, with a number of each entry.
        let back: Slice<Bf16> = self.shared.take(places * count * hidden);
        let others: Slice<Bf16> = self.gpu.poisoned(places * count * hidden);
        let numbers: Slice<f32> = self.shared.take(places * entries);
        let other_numbers: Slice<f32> = self.gpu.poisoned(places * entries);
        let row_of = self.gpu.poisoned(places * entries);
        let (y, d_weights) = (self.gpu.poisoned(count * hidden), self.gpu.poisoned(entries));
        let (stream, nothing) = (&self.gpu.stream, [Slice::none(); 2]);
        let with = Some((part.d_row_weights.gpu, [numbers, other_numbers]));
        let from = (part.dx.gpu, hidden);
        packed::pack(stream, 5, cut, from, (ours.sources, rows), row_of, [back, others], with).expect("launched");
        let copies = |other: usize| {
            let of = |len: usize| other * len..(other + 1) * len;
            vec![
                (others.part(of(count * hidden)).cast(), back.part(nth(count * hidden)).cast()),
                (other_numbers.part(of(entries)).cast(), numbers.part(nth(entries)).cast()),
            ]
        };
        self.member.copy((stream, &watch), copies).expect("copied");
        sum(stream, 5, (Returned::ByPlace(back), places), hidden, nothing, y).expect("launched");
        packed::sum_numbers(stream, 5, numbers, places, d_weights).expect("launched");
        let range = tokens.start * top_k..tokens.end * top_k;
        assert_bits(self.gpu, "gradients of weights", d_weights, layer.d_weights.part(range.clone()));
        let by_sms = self.gpu.floats(layer.d_returned.part(range.start * hidden..range.end * hidden));
        let expected: Vec<f64> = (0..count * hidden)
            .map(|at| (0..top_k).map(|slot| by_sms[(at / hidden * top_k + slot) * hidden + at % hidden]).sum())
            .collect();
        assert_close("sums that copy engines brought", &self.gpu.floats(y), &expected, 2.0 * BF16);
    }

    fn in_fp8(&mut self, layer: &Layer, part: &Part, tokens: std::ops::Range<usize>) {
        let Case { places, top_k, hidden, .. } = *self.case;
        let (place, count, capacity) = (self.member.place(), tokens.len(), part.routed.capacity());
        let (cut, watch) = (self.member.cut(tokens.clone()), Watch::new(PATIENCE));
        let (rows, tiles, power) = (part.routed.count(), hidden.div_ceil(TILE), Scale::PowerOfTwo);
        let tiled = |gpu: &mut Gpu, rows: usize| Tiled {
            values: gpu.poisoned(rows * hidden),
            scales: gpu.poisoned(tile_scales(rows, hidden)),
        };
        // What rows in bf16 are in FP8.
        let expected = tiled(self.gpu, capacity);
        quantise::rows(&self.gpu.stream, 5, part.arrived, expected, hidden, rows, power).expect("launched");

        let ours = again(self.gpu, &part.routed);
        let sent = tiled(self.gpu, count);
        let x = layer.x.gpu.part(tokens.start * hidden..tokens.end * hidden);
        quantise::rows(&self.gpu.stream, 5, x, sent, hidden, Rows::exactly(count), power).expect("launched");
        let arrived =
            Arrived { values: self.shared.take(capacity * hidden), scales: self.shared.take(capacity * tiles) };
        let scales: Slice<f32> = self.gpu.poisoned(tile_scales(capacity, hidden));
        let stream = &self.gpu.stream;
        let on = (stream, &watch);
        self.member.dispatch_fp8(on, 3, sent, hidden, tokens.clone(), &ours, arrived).expect("launched");
        quantise::turn_scales(stream, 5, arrived.scales, scales, tiles, rows).expect("launched");
        assert_found(self.gpu, "a dispatch in FP8", &ours, &part.routed);
        assert_bits(self.gpu, "rows in FP8", arrived.values, expected.values);
        assert_bits(self.gpu, "scales", scales, expected.scales);

        // Copy engines bring the same.
        let staged = self.shared.tiled(places * count, hidden);
        let gathered = tiled(self.gpu, capacity);
        let of_place = |of: Tiled, place: usize| {
            let (values, scales) = (of.values.len() / places, of.scales.len() / places);
            let nth = |len: usize| place * len..(place + 1) * len;
            (of.values.part(nth(values)).cast::<u8>(), of.scales.part(nth(scales)).cast::<u8>())
        };
        let stream = &self.gpu.stream;
        let to = of_place(staged, place);
        self.member
            .copy((stream, &watch), |_| vec![(sent.values.cast(), to.0), (sent.scales.cast(), to.1)])
            .expect("copied");
        let all = OfAll { own: Values::Fp8(sent), staged: Values::Fp8(staged) };
        let gathers = packed::gather(stream, 5, cut, all, hidden, (ours.sources, rows), Values::Fp8(gathered));
        gathers.expect("launched");
        assert_bits(self.gpu, "rows in FP8 by copy engines", gathered.values, expected.values);
        assert_bits(self.gpu, "scales by copy engines", gathered.scales, expected.scales);

        // Results in FP8 are added up as those are that were rounded before.
        let results = tiled(self.gpu, capacity);
        let entries = self.case.tokens * top_k;
        let returned: Arrived =
            Arrived { values: self.shared.take(entries * hidden), scales: self.shared.take(entries * tiles) };
        let (plain, y): (Slice<Bf16>, Slice<Bf16>) =
            (self.gpu.poisoned(capacity * hidden), self.gpu.poisoned(count * hidden));
        let back: Slice<Bf16> = self.gpu.poisoned(entries * hidden);
        let expected_y: Slice<Bf16> = self.gpu.poisoned(count * hidden);
        let none: Slice<f32> = Slice::none();
        let stream = &self.gpu.stream;
        let on = (stream, &watch);
        quantise::rows(stream, 5, part.y.gpu, results, hidden, rows, power).expect("launched");
        let from = (results.values, RowScales::ByTile(results.scales));
        quantise::dequantise_rows(stream, 5, from, plain, hidden, rows).expect("launched");
        self.member.give_back_fp8(on, 3, (results, none), hidden, &ours, (returned, none)).expect("launched");
        self.member.combine(on, 3, plain, hidden, &ours, back).expect("launched");
        let range = |width: usize| tokens.start * top_k * width..tokens.end * top_k * width;
        let (bytes, scales): (Slice<Fp8>, Slice<f32>) =
            (returned.values.part(range(hidden)), returned.scales.part(range(tiles)));
        let nothing = [Slice::none(); 2];
        sum(stream, 5, (Returned::ByTokenFp8(bytes, scales), top_k), hidden, nothing, y).expect("launched");
        sum(stream, 5, (Returned::ByToken(back.part(range(hidden))), top_k), hidden, nothing, expected_y)
            .expect("launched");
        assert_bits(self.gpu, "sums of results in FP8", y, expected_y);
    }
}

/// Each place a thread, as ranks are.
fn exchanges(devices: &[Arc<Device>], case: Case) {
    let mut gpus = gpus(devices, case.places);
    let mut members = members(&gpus, &case);
    let mut random = Random::new(case.tokens as u64 + 77);
    let choices = [Choice::Evenly, Choice::OneHot, Choice::HalfEmpty];
    let layers: Vec<Vec<Layer>> = gpus
        .iter_mut()
        .map(|gpu| choices.iter().map(|&choice| Layer::new(gpu, &case, choice, &mut random)).collect())
        .collect();
    let mut shared: Vec<Shared> = gpus.iter().map(|gpu| Shared::new(gpu, 3 * room(&case))).collect();
    let all: Vec<Slice<u8>> = shared.iter().map(|shared| shared.memory.all()).collect();
    for (member, own) in members.iter_mut().zip(&all) {
        member.open(vec![Window { own: *own, all: all.clone() }]);
    }
    std::thread::scope(|scope| {
        let places = gpus.iter_mut().zip(&mut members).zip(&mut shared).zip(&layers);
        for (((gpu, member), shared), layers) in places {
            scope.spawn(move || {
                let mut place = Place { gpu, member, shared, case: &case };
                for layer in layers {
                    for (part, tokens) in layer.parts.iter().zip(case.parts()) {
                        if !tokens.is_empty() {
                            place.compare(layer, part, tokens);
                        }
                    }
                }
            });
        }
    });
}

#[test]
fn other_forms_bring_the_same_rows_on_one_gpu() {
    let Some(gpu) = gpu() else { return };
    CASES.into_iter().for_each(|case| exchanges(&[Arc::clone(&gpu.device)], case));
}

#[test]
fn other_forms_bring_the_same_rows_on_two_gpus() {
    let Some(gpu) = gpu() else { return };
    if device::count().is_ok_and(|count| count < 2) {
        eprintln!("skipped: needs two GPUs");
        return;
    }
    let devices = [Arc::clone(&gpu.device), Device::open(1).expect("a second GPU")];
    CASES.into_iter().filter(|case| case.places > 1).for_each(|case| exchanges(&devices, case));
}

/// Time of a dispatch in each form, two places: 4096 tokens of 7168 values at each, 8 of 256 experts.
#[test]
#[ignore = "a measurement"]
fn time_of_each_form() {
    const TIMES: usize = 10;
    let Some(gpu) = gpu() else { return };
    let mut devices = vec![Arc::clone(&gpu.device)];
    if device::count().is_ok_and(|count| count > 1) {
        devices.push(Device::open(1).expect("a second GPU"));
    }
    let case = Case { places: 2, experts: 256, tokens: 4096, top_k: 8, hidden: 7168, first: None };
    let (tokens, hidden, capacity) = (case.tokens, case.hidden, 3 * case.tokens * case.top_k / 2);
    let tiles = hidden.div_ceil(TILE);
    let mut gpus = gpus(&devices, case.places);
    let mut members = members(&gpus, &case);
    let mut random = Random::new(6);
    let mut shared: Vec<Shared> = gpus.iter().map(|gpu| Shared::new(gpu, 2 << 30)).collect();
    let all: Vec<Slice<u8>> = shared.iter().map(|shared| shared.memory.all()).collect();
    for (member, own) in members.iter_mut().zip(&all) {
        member.open(vec![Window { own: *own, all: all.clone() }]);
    }
    struct Given {
        x: Slice<Bf16>,
        sent: Tiled,
        routed: Routed,
        arrived: Slice<Bf16>,
        narrow: Arrived,
        staged: Slice<Bf16>,
        staged_fp8: Tiled,
    }
    let given: Vec<Given> = (gpus.iter_mut().zip(&mut shared))
        .map(|(gpu, shared)| {
            let experts = case.choose(Choice::Evenly, &mut random);
            let weights = gpu.given(&vec![1.0f32; tokens * case.top_k]);
            let sent =
                Tiled { values: gpu.poisoned(tokens * hidden), scales: gpu.poisoned(tile_scales(tokens, hidden)) };
            Given {
                x: gpu.given(&vec![Bf16::of(1.0); tokens * hidden]),
                sent,
                routed: routed(gpu, &case, 0..tokens, &experts, weights, capacity),
                arrived: gpu.poisoned(capacity * hidden),
                narrow: Arrived { values: shared.take(capacity * hidden), scales: shared.take(capacity * tiles) },
                staged: shared.take(2 * tokens * hidden),
                staged_fp8: shared.tiled(2 * tokens, hidden),
            }
        })
        .collect();
    // Every form after one by SMs, which finds the rows.
    for (form, sms) in [
        ("bf16", 8),
        ("bf16", 20),
        ("bf16", 132),
        ("FP8", 8),
        ("FP8", 20),
        ("FP8", 132),
        ("copied", 0),
        ("copied in FP8", 0),
        ("picked", 132),
    ] {
        let times: Vec<f64> = std::thread::scope(|scope| {
            let threads =
                gpus.iter().zip(&mut members).zip(&given).enumerate().map(|(place, ((gpu, member), given))| {
                    scope.spawn(move || {
                        let watch = Watch::new(PATIENCE);
                        let event = || Event::new(&gpu.device, true).expect("an event");
                        let (start, end, stream) = (event(), event(), &gpu.stream);
                        let nth = |len: usize| place * len..(place + 1) * len;
                        for time in 0..=TIMES {
                            let on = (stream, &watch);
                            let done = match form {
                                "bf16" => {
                                    member.dispatch(on, sms, given.x, hidden, 0..tokens, &given.routed, given.arrived)
                                }
                                "FP8" => member.dispatch_fp8(
                                    on,
                                    sms,
                                    given.sent,
                                    hidden,
                                    0..tokens,
                                    &given.routed,
                                    given.narrow,
                                ),
                                "copied" => member.copy(on, |_| {
                                    vec![(given.x.cast(), given.staged.part(nth(tokens * hidden)).cast())]
                                }),
                                "copied in FP8" => member.copy(on, |_| {
                                    let Tiled { values, scales } = given.staged_fp8;
                                    vec![
                                        (given.sent.values.cast(), values.part(nth(tokens * hidden)).cast()),
                                        (given.sent.scales.cast(), scales.part(nth(tokens * tiles)).cast()),
                                    ]
                                }),
                                _ => {
                                    let all = OfAll { own: Values::Bf16(given.x), staged: Values::Bf16(given.staged) };
                                    let rows = (given.routed.sources, given.routed.count());
                                    packed::gather(
                                        stream,
                                        sms,
                                        member.cut(0..tokens),
                                        all,
                                        hidden,
                                        rows,
                                        Values::Bf16(given.arrived),
                                    )
                                }
                            };
                            done.expect("launched");
                            if time == 0 {
                                start.record(stream).expect("recorded");
                            }
                        }
                        end.record(stream).expect("recorded");
                        stream.synchronize().expect("all exchanges");
                        f64::from(end.since(&start).expect("timed")) / TIMES as f64
                    })
                });
            let threads: Vec<_> = threads.collect();
            threads.into_iter().map(|thread| thread.join().expect("measured")).collect()
        });
        eprintln!("{} GPUs, {form}, {sms} SMs: {:.3} ms", devices.len(), times[0]);
    }
}
