//! A layer with experts in numbers, small enough to run in every order: four GPUs in two nodes, an expert on each, four
//! tokens on each, two experts for a token. Integers that wrap around, so that sums are exact in any order.
//!
//! Every op really does its work (attention mixes tokens causally, exchanges move copies and bring them back, weight
//! gradients add up outer products, recomputation recomputes), reads what must be there, and is checked to touch exactly
//! the values that `effects` says it does.

use std::collections::{BTreeMap, BTreeSet};

use crate::ir::{Component, Step, Tokens};
use crate::passes::rewrite::analysis::Layer;
use crate::passes::rewrite::effects::{Effects, Kind, Part, Value, includes_shared, leaf_effects};
use crate::passes::rewrite::language::{Carrier, FINEST, Leaf, LeafPhase, Payload, Route};

const GPUS: usize = 4;
const GPUS_PER_NODE: usize = 2;
const HIDDEN: usize = 3;

/// Rows of a tensor, by where they are, whose token it is, and the expert that it is for.
type Rows = BTreeMap<(usize, usize, usize), Vec<i64>>;

/// An exchange of some tokens, by component, phase and token.
pub type Exchanged = (Component, LeafPhase, u32);

/// The values of layers.
#[derive(Clone)]
pub struct World {
    layer: Layer,
    /// Exchanges that round what they send although no op in front did.
    rounded: BTreeSet<Exchanged>,
    values: BTreeMap<(Value, u32), Rows>,
    reads: BTreeSet<(Value, u32)>,
    writes: BTreeSet<(Value, u32)>,
}

impl World {
    /// With an input and an output gradient for each site, and weight gradients of earlier micro-batches.
    pub fn new(layer: Layer, sites: &[u16], rounded: BTreeSet<Exchanged>) -> Self {
        let mut world =
            Self { layer, rounded, values: BTreeMap::new(), reads: BTreeSet::new(), writes: BTreeSet::new() };
        for &site in sites {
            for token in 0..FINEST {
                for (kind, salt) in [(Kind::Input, 3), (Kind::OutputGradient, 7)] {
                    let row = |gpu: usize| {
                        let number = |n| number([site.into(), token.into(), gpu as u64, n, salt]);
                        ((gpu, gpu, 0), (0..HIDDEN as u64).map(number).collect())
                    };
                    world.values.insert((Value { kind, site }, token), (0..GPUS).map(row).collect());
                }
                for part in [Part::Attention, Part::Experts, Part::Shared] {
                    world.values.insert((Value { kind: Kind::WeightGradient(part), site }, token), Rows::new());
                }
            }
        }
        world
    }

    /// Runs ops in this order; says what was not there to be read.
    pub fn run(mut self, leaves: &[Leaf]) -> Result<Self, String> {
        for leaf in leaves {
            self.run_one(leaf)?;
        }
        Ok(self)
    }

    /// Changes every value but those that F keeps, which belong together.
    pub fn stale(mut self) -> Self {
        for (n, ((value, token), rows)) in (0..).zip(&mut self.values) {
            if !matches!(value.kind, Kind::Kept(_)) {
                let change = number([u64::from(*token), value.site.into(), n, 5, 5]);
                rows.values_mut().flatten().for_each(|x| *x = x.wrapping_mul(3).wrapping_add(change));
            }
        }
        self
    }

    /// What is left by a program with these effects: all values but those of which only its own ops may know.
    pub fn left(&self, effects: &Effects) -> BTreeMap<(Value, u32), Rows> {
        let temporary =
            |kind| matches!(kind, Kind::Handed(_) | Kind::Again(_) | Kind::Quantised(..) | Kind::Packed(..));
        let written: BTreeSet<(Value, u32)> = effects.writes.iter().collect();
        let seen = |place: &(Value, u32)| written.contains(place) || !temporary(place.0.kind);
        self.values.iter().filter(|(place, _)| seen(place)).map(|(place, rows)| (*place, rows.clone())).collect()
    }

    fn run_one(&mut self, leaf: &Leaf) -> Result<(), String> {
        (self.reads, self.writes) = Default::default();
        match leaf.step {
            Step::Quantise => self.each(leaf, |world, token| {
                let rows = world.read(leaf, payload_kind(leaf), token)?;
                world.write(leaf, Kind::Quantised(leaf.component, leaf.phase), token, round(rows));
                Ok(())
            })?,
            Step::Pack => self.each(leaf, |world, token| {
                let rows = world.sent(leaf, token)?;
                let packed = if spreads(leaf) { spread(&rows, leaf, token) } else { by_owner(&rows) };
                world.write(leaf, Kind::Packed(leaf.component, leaf.phase), token, packed);
                Ok(())
            })?,
            Step::Main if leaf.is_exchange() => self.each(leaf, |world, token| world.exchange(leaf, token))?,
            Step::Again => self.again(leaf)?,
            Step::Shared => self.compute(leaf, Part::Shared)?,
            Step::Main if leaf.component == Component::Attention => self.compute(leaf, Part::Attention)?,
            Step::Main => {
                self.compute(leaf, Part::Experts)?;
                if includes_shared(leaf, self.layer) {
                    self.compute(leaf, Part::Shared)?;
                }
            }
        }
        let effects = leaf_effects(leaf, self.layer);
        // A backward in one op keeps what it hands over to itself.
        let own = |value: &(Value, u32)| leaf.phase == LeafPhase::B && matches!(value.0.kind, Kind::Handed(_));
        let touched = |set: &BTreeSet<(Value, u32)>| set.iter().filter(|value| !own(value)).copied().collect();
        let (reads, writes): (BTreeSet<_>, BTreeSet<_>) = (touched(&self.reads), touched(&self.writes));
        assert_eq!(reads, effects.reads.iter().collect(), "{leaf} reads");
        assert_eq!(writes, effects.writes.iter().collect(), "{leaf} writes");
        Ok(())
    }

    fn each(&mut self, leaf: &Leaf, run: impl Fn(&mut Self, u32) -> Result<(), String>) -> Result<(), String> {
        tokens(leaf).try_for_each(|token| run(self, token))
    }

    fn read(&mut self, leaf: &Leaf, kind: Kind, token: u32) -> Result<Rows, String> {
        let place = (Value { kind, site: leaf.site }, token);
        self.reads.insert(place);
        self.values.get(&place).cloned().ok_or_else(|| format!("{leaf} reads {kind:?} of token {token}: not there"))
    }

    fn write(&mut self, leaf: &Leaf, kind: Kind, token: u32, rows: Rows) {
        let place = (Value { kind, site: leaf.site }, token);
        self.writes.insert(place);
        self.values.insert(place, rows);
    }

    /// What an exchange, or the op that packs for it, finds to send.
    fn sent(&mut self, leaf: &Leaf, token: u32) -> Result<Rows, String> {
        match leaf.exchange.payload {
            Payload::Fp8 => self.read(leaf, Kind::Quantised(leaf.component, leaf.phase), token),
            Payload::AsGiven => {
                let rows = self.read(leaf, payload_kind(leaf), token)?;
                let rounds = self.rounded.contains(&(leaf.component, leaf.phase, token));
                Ok(if rounds { round(rows) } else { rows })
            }
        }
    }

    fn exchange(&mut self, leaf: &Leaf, token: u32) -> Result<(), String> {
        let brought = match (leaf.exchange.carrier, leaf.exchange.route) {
            (Carrier::CopyEngine, _) => {
                let packed = self.read(leaf, Kind::Packed(leaf.component, leaf.phase), token)?;
                if spreads(leaf) {
                    packed
                } else {
                    gather(packed.into_iter().map(|((o, at, e), row)| ((at, o, e), row)), leaf)
                }
            }
            (Carrier::Sms, Route::Flat) => {
                let rows = self.sent(leaf, token)?;
                if spreads(leaf) { spread(&rows, leaf, token) } else { gather(rows, leaf) }
            }
            (Carrier::Sms, Route::TwoHop) => {
                let rows = self.sent(leaf, token)?;
                if spreads(leaf) { spread_by_node(&rows, leaf, token) } else { gather_by_node(rows, leaf) }
            }
        };
        let kind = match (leaf.component, leaf.phase) {
            (Component::Dispatch, LeafPhase::F) => Kind::Arrived,
            (Component::Combine, LeafPhase::F) => Kind::Returned,
            (Component::Combine, _) => Kind::ExpertGradient,
            _ => Kind::ReturnedGradient,
        };
        self.write(leaf, kind, token, brought);
        Ok(())
    }

    /// The product that I hands to W, from its two factors.
    fn again(&mut self, leaf: &Leaf) -> Result<(), String> {
        let part = if leaf.component == Component::Attention { Part::Attention } else { Part::Experts };
        let kept = self.all(leaf, Kind::Kept(part))?;
        self.write_all(leaf, Kind::Again(part), products(&kept, part));
        Ok(())
    }

    fn compute(&mut self, leaf: &Leaf, part: Part) -> Result<(), String> {
        match leaf.phase {
            LeafPhase::F => self.forward(leaf, part),
            LeafPhase::I => self.input_gradient(leaf, part),
            LeafPhase::W => self.weight_gradient(leaf, part),
            LeafPhase::B => {
                self.input_gradient(leaf, part)?;
                let reads = self.reads.clone();
                self.weight_gradient(leaf, part)?;
                self.reads.retain(|value| reads.contains(value) || !matches!(value.0.kind, Kind::Handed(_)));
                Ok(())
            }
        }
    }

    fn forward(&mut self, leaf: &Leaf, part: Part) -> Result<(), String> {
        let (from, to) = match part {
            Part::Attention => (Kind::Input, Kind::Attended),
            Part::Experts if self.layer.exchanges => (Kind::Arrived, Kind::ExpertOutput),
            Part::Experts => (Kind::Attended, Kind::Returned),
            Part::Shared => (Kind::Attended, Kind::SharedOutput),
        };
        let inputs = self.all(leaf, from)?;
        let factors = |rows: &Rows| {
            mapped(rows, |key, x| [x.to_vec(), times(part, 0, key.2, x), times(part, 1, key.2, x)].concat())
        };
        let mut kept: Vec<Rows> = inputs.iter().map(factors).collect();
        let products = products(&kept, part);
        let output = |(rows, products): (&Rows, &Rows)| {
            mapped(rows, |key, x| {
                let out = times(part, 2, key.2, &products[key]);
                if part == Part::Attention { sum(x, &out) } else { out }
            })
        };
        let outputs = inputs.iter().zip(&products).map(output).collect();
        for (kept, products) in kept.iter_mut().zip(&products) {
            kept.iter_mut().for_each(|(key, row)| row.extend(&products[key]));
        }
        self.write_all(leaf, to, outputs);
        self.write_all(leaf, Kind::Kept(part), kept);
        Ok(())
    }

    fn input_gradient(&mut self, leaf: &Leaf, part: Part) -> Result<(), String> {
        let (from, to) = match part {
            Part::Attention => (Kind::OutputGradient, Kind::InputGradient),
            Part::Experts if self.layer.exchanges => (Kind::ExpertGradient, Kind::ArrivedGradient),
            Part::Experts => (Kind::OutputGradient, Kind::ReturnedGradient),
            Part::Shared => (Kind::OutputGradient, Kind::SharedGradient),
        };
        let mut gradients = self.all(leaf, from)?;
        if part == Part::Attention {
            let mut others = vec![Kind::ReturnedGradient];
            others.extend(self.layer.shared.then_some(Kind::SharedGradient));
            for kind in others {
                for (all, more) in gradients.iter_mut().zip(self.all(leaf, kind)?) {
                    all.iter_mut().for_each(|(key, row)| *row = sum(row, &more[key]));
                }
            }
        }
        let kept = self.all(leaf, Kind::Kept(part))?;
        // A shared expert's recomputation is always inside its op.
        let products = match leaf.without_again && part != Part::Shared {
            true => self.all(leaf, Kind::Again(part))?,
            false => products(&kept, part),
        };
        let into = |rows: &Rows| mapped(rows, |key, g| times_transposed(part, 2, key.2, g));
        let inner: Vec<Rows> = gradients.iter().map(into).collect();
        let halves = factor_gradients(&inner, &kept, part);
        let (mut outputs, mut handed) = (Vec::new(), Vec::new());
        for ((gradients, (first, second)), products) in gradients.iter().zip(&halves).zip(&products) {
            outputs.push(mapped(gradients, |key, g| {
                let through = sum(
                    &times_transposed(part, 0, key.2, &first[key]),
                    &times_transposed(part, 1, key.2, &second[key]),
                );
                if part == Part::Attention { sum(g, &through) } else { through }
            }));
            let row = |key: &_, g: &[i64]| [g, &first[key][..], &second[key][..], &products[key][..]].concat();
            handed.push(mapped(gradients, row));
        }
        self.write_all(leaf, to, outputs);
        self.write_all(leaf, Kind::Handed(part), handed);
        Ok(())
    }

    /// Sums of outer products, by expert.
    fn weight_gradient(&mut self, leaf: &Leaf, part: Part) -> Result<(), String> {
        let kept = self.all(leaf, Kind::Kept(part))?;
        let handed = self.all(leaf, Kind::Handed(part))?;
        let mut sums = self.all(leaf, Kind::WeightGradient(part))?;
        for ((kept, handed), sums) in kept.iter().zip(&handed).zip(&mut sums) {
            for (key, row) in handed {
                let slice = |n: usize| &row[n * HIDDEN..(n + 1) * HIDDEN];
                let x = &kept[key][..HIDDEN];
                let outer = [outer(slice(0), slice(3)), outer(slice(1), x), outer(slice(2), x)].concat();
                let sum_of = sums.entry((0, 0, key.2)).or_insert_with(|| vec![1; outer.len()]);
                *sum_of = sum(sum_of, &outer);
            }
        }
        self.write_all(leaf, Kind::WeightGradient(part), sums);
        Ok(())
    }

    fn all(&mut self, leaf: &Leaf, kind: Kind) -> Result<Vec<Rows>, String> {
        tokens(leaf).map(|token| self.read(leaf, kind, token)).collect()
    }

    fn write_all(&mut self, leaf: &Leaf, kind: Kind, rows: Vec<Rows>) {
        tokens(leaf).zip(rows).for_each(|(token, rows)| self.write(leaf, kind, token, rows));
    }
}

/// The tokens of a leaf, one for each of the finest parts.
pub fn tokens(leaf: &Leaf) -> impl Iterator<Item = u32> + use<> {
    let tokens = leaf.tokens;
    (0..FINEST).filter(move |&part| tokens.meet(Tokens { part, parts: FINEST }))
}

/// What is between the projections: gate times up; of attention, q times the sum of k so far.
fn products(kept: &[Rows], part: Part) -> Vec<Rows> {
    let mut so_far: Rows = Rows::new();
    let of_token = |rows: &Rows| {
        mapped(rows, |key, row| {
            let (first, second) = (&row[HIDDEN..2 * HIDDEN], &row[2 * HIDDEN..3 * HIDDEN]);
            if part != Part::Attention {
                return product(first, second);
            }
            let keys = so_far.entry(*key).or_insert_with(|| vec![0; HIDDEN]);
            *keys = sum(keys, second);
            product(first, keys)
        })
    };
    kept.iter().map(of_token).collect()
}

/// Gradients of the two factors of [`products`].
fn factor_gradients(inner: &[Rows], kept: &[Rows], part: Part) -> Vec<(Rows, Rows)> {
    let factor = |rows: &Rows, n: usize| map(rows, |row| row[n * HIDDEN..(n + 1) * HIDDEN].to_vec());
    let mut both = Vec::new();
    for (token, (gradients, rows)) in inner.iter().zip(kept).enumerate() {
        let (mut first, mut second) = (factor(rows, 2), factor(rows, 1));
        if part == Part::Attention {
            first = Rows::new();
            for earlier in &kept[..=token] {
                add(&mut first, &factor(earlier, 2));
            }
        } else {
            second.iter_mut().for_each(|(key, row)| *row = product(row, &gradients[key]));
        }
        first.iter_mut().for_each(|(key, row)| *row = product(row, &gradients[key]));
        if part == Part::Attention {
            second = Rows::new();
            for (later, queries) in inner.iter().zip(kept).skip(token) {
                let queries = factor(queries, 1);
                add(&mut second, &mapped(later, |key, row| product(row, &queries[key])));
            }
        }
        both.push((first, second));
    }
    both
}

/// Whether copies go out to the experts (else they come back).
fn spreads(leaf: &Leaf) -> bool {
    (leaf.component == Component::Dispatch) == (leaf.phase == LeafPhase::F)
}

fn payload_kind(leaf: &Leaf) -> Kind {
    match (leaf.component, leaf.phase) {
        (Component::Dispatch, LeafPhase::F) => Kind::Attended,
        (Component::Combine, LeafPhase::F) => Kind::ExpertOutput,
        (Component::Combine, _) => Kind::OutputGradient,
        _ => Kind::ArrivedGradient,
    }
}

/// The experts of a token, and the weight of each. Nobody writes them while a layer runs.
fn routes(owner: usize, token: u32) -> [(usize, i64); 2] {
    let first = (owner + 2 * token as usize + 1) % GPUS;
    let second = (first + 1 + (owner + token as usize) % (GPUS - 1)) % GPUS;
    [(first, 3 + i64::from(token)), (second, 5 - owner as i64)]
}

/// How much a copy counts: on the way back of a forward, and on the way out of a backward.
fn weighted(leaf: &Leaf, weight: i64, row: &[i64]) -> Vec<i64> {
    let factor = if leaf.component == Component::Combine { weight } else { 1 };
    row.iter().map(|x| x.wrapping_mul(factor)).collect()
}

fn spread(rows: &Rows, leaf: &Leaf, token: u32) -> Rows {
    let copies = |(&(_, owner, _), row): (&(usize, usize, usize), &Vec<i64>)| {
        routes(owner, token).map(|(expert, weight)| ((expert, owner, expert), weighted(leaf, weight, row)))
    };
    rows.iter().flat_map(copies).collect()
}

/// First once to each node, then on to the GPUs there.
fn spread_by_node(rows: &Rows, leaf: &Leaf, token: u32) -> Rows {
    let mut staged: BTreeMap<(usize, usize), &Vec<i64>> = BTreeMap::new();
    for (&(_, owner, _), row) in rows {
        for (expert, _) in routes(owner, token) {
            staged.insert((expert / GPUS_PER_NODE, owner), row);
        }
    }
    let mut arrived = Rows::new();
    for ((node, owner), row) in staged {
        for (expert, weight) in routes(owner, token).into_iter().filter(|(expert, _)| expert / GPUS_PER_NODE == node) {
            arrived.insert((expert, owner, expert), weighted(leaf, weight, row));
        }
    }
    arrived
}

/// Copies of a token summed up, each with its weight where the leaf has weights.
fn gather(rows: impl IntoIterator<Item = ((usize, usize, usize), Vec<i64>)>, leaf: &Leaf) -> Rows {
    let mut sums = Rows::new();
    for ((_, owner, expert), row) in rows {
        let row = weighted(leaf, 2 + expert as i64, &row);
        add(&mut sums, &Rows::from([((owner, owner, 0), row)]));
    }
    sums
}

/// First the sum of each node, then that of the nodes.
fn gather_by_node(rows: Rows, leaf: &Leaf) -> Rows {
    let mut sums = Rows::new();
    for node in 0..GPUS / GPUS_PER_NODE {
        let there = rows.iter().filter(|((at, ..), _)| at / GPUS_PER_NODE == node);
        add(&mut sums, &gather(there.map(|(key, row)| (*key, row.clone())), leaf));
    }
    sums
}

/// Laid out by the GPU that they go back to.
fn by_owner(rows: &Rows) -> Rows {
    rows.iter().map(|(&(at, owner, expert), row)| ((owner, at, expert), row.clone())).collect()
}

fn round(rows: Rows) -> Rows {
    map(&rows, |row| row.iter().map(|x| x.wrapping_sub(x.rem_euclid(8))).collect())
}

fn map(rows: &Rows, f: impl Fn(&[i64]) -> Vec<i64>) -> Rows {
    mapped(rows, |_, row| f(row))
}

fn mapped(rows: &Rows, mut f: impl FnMut(&(usize, usize, usize), &[i64]) -> Vec<i64>) -> Rows {
    rows.iter().map(|(key, row)| (*key, f(key, row))).collect()
}

fn add(to: &mut Rows, rows: &Rows) {
    for (key, row) in rows {
        let there = to.entry(*key).or_insert_with(|| vec![0; row.len()]);
        *there = sum(there, row);
    }
}

fn sum(a: &[i64], b: &[i64]) -> Vec<i64> {
    a.iter().zip(b).map(|(a, b)| a.wrapping_add(*b)).collect()
}

fn product(a: &[i64], b: &[i64]) -> Vec<i64> {
    a.iter().zip(b).map(|(a, b)| a.wrapping_mul(*b)).collect()
}

fn outer(a: &[i64], b: &[i64]) -> Vec<i64> {
    a.iter().flat_map(|a| b.iter().map(move |b| a.wrapping_mul(*b))).collect()
}

fn times(part: Part, matrix: u64, expert: usize, x: &[i64]) -> Vec<i64> {
    let row =
        |r| (0..HIDDEN).fold(0i64, |sum, c| sum.wrapping_add(weight(part, matrix, expert, r, c).wrapping_mul(x[c])));
    (0..HIDDEN).map(row).collect()
}

fn times_transposed(part: Part, matrix: u64, expert: usize, g: &[i64]) -> Vec<i64> {
    let row =
        |r| (0..HIDDEN).fold(0i64, |sum, c| sum.wrapping_add(weight(part, matrix, expert, c, r).wrapping_mul(g[c])));
    (0..HIDDEN).map(row).collect()
}

fn weight(part: Part, matrix: u64, expert: usize, row: usize, column: usize) -> i64 {
    number([part as u64, matrix, expert as u64, row as u64, column as u64])
}

/// A small odd number that depends on all of these.
fn number(of: [u64; 5]) -> i64 {
    let mixed = of.iter().fold(17u64, |mixed, n| mixed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(n + 1));
    ((mixed >> 40) % 32) as i64 * 2 - 31
}
