//! How the rows of a part of a layer's tokens get to the experts and back, in F or in I, in each form that a plan may ask for: as they are or
//! in FP8, by SMs or by copy engines.
//!
//! | | rows that are sent | arrive | before experts read them |
//! |---|---|---|---|
//! | by SMs | bf16 | where experts read them | |
//! | | FP8, quantised before | as bytes, scales beside | scales turned; or, where products are in bf16, dequantised |
//! | by copy engines | all tokens | place by place | the experts' rows picked ([`crate::runtime::cuda::exchange::packed`]) |
//!
//! Back the same way: FP8 is read where rows are added up. What copy engines send back in FP8 is quantised when it is packed, since it is
//! sums of rows.

use std::ops::Range;

use super::product::Tiles;
use super::{Context, Exchange, Sizes};
use crate::error::{Error, Result};
use crate::ir::Phase;
use crate::runtime::cuda::exchange::packed::Cut;
use crate::runtime::cuda::exchange::{Arrived, Routed};
use crate::runtime::cuda::executor::blocks::{Block, Blocks, Packer, Spot};
use crate::runtime::cuda::executor::forms::{Form, Forms};
use crate::runtime::cuda::ops::Rows;
use crate::runtime::cuda::ops::exchange::{self, Returned};
use crate::runtime::cuda::ops::packed::{self, Found, OfAll, Values};
use crate::runtime::cuda::ops::quantise::{self, RowScales, TILE};
use crate::runtime::cuda::product::Tiled;
use crate::runtime::cuda::{Bf16, Fp8, Slice};
use crate::runtime::host::precision::{SENT, Scale};

/// Where values lie that the rows of a part need on their way.
pub struct Passage {
    tokens: Range<usize>,
    hidden: usize,
    top_k: usize,
    /// The job sends to experts in FP8.
    fp8: bool,
    /// In FP8: what is sent, tokens × hidden; and rows as they arrive, with scales by row.
    sent: Option<Tiles>,
    landed: Option<(Spot<Fp8>, Spot<f32>)>,
    /// By copy engines: places × tokens × hidden in either format, and in F what tokens chose.
    staged: Option<Spot<Bf16>>,
    staged_fp8: Option<Tiles>,
    chosen: Option<Chosen>,
    back: Back,
}

/// The experts of the tokens of all places and their weights, and scratch.
struct Chosen {
    experts: Spot<u32>,
    weights: Spot<f32>,
    words: Spot<u32>,
}

/// What the way back needs.
struct Back {
    /// In FP8, by SMs: capacity × hidden.
    sent: Option<Tiles>,
    /// By copy engines: a word for each entry of all places.
    row_of: Option<Spot<u32>>,
    /// Places × tokens × hidden: what goes to the others (in FP8: all sums before they are quantised), and what comes.
    packed: Option<Spot<Bf16>>,
    staged: Option<Spot<Bf16>>,
    /// The same in FP8.
    packed_fp8: Option<Tiles>,
    staged_fp8: Option<Tiles>,
    /// In I: places × entries, likewise.
    numbers: Option<[Spot<f32>; 2]>,
}

/// Where the rows of all tokens come back by SMs: tokens · top-k × hidden.
pub struct Returns {
    rows: Spot<Bf16>,
    /// In FP8, with scales by row.
    fp8: Option<(Spot<Fp8>, Spot<f32>)>,
}

/// FP8 scales of what experts send back, as on the host.
const RETURNED: Scale = Scale::Exact;

/// Where experts read rows.
#[derive(Clone, Copy)]
pub enum Target {
    /// In bf16.
    Bf16(Slice<Bf16>),
    /// In FP8.
    Fp8(Tiled),
}

/// Scratch of a phase.
fn scratch(phase: Phase) -> Block {
    if phase == Phase::F { Block::Forward } else { Block::Backward }
}

impl Returns {
    /// In a phase of a unit, of all tokens.
    pub fn new(sizes: Sizes, (forms, unit): (&Forms, usize), phase: Phase, hidden: usize, packer: &mut Packer) -> Self {
        let (block, entries) = (scratch(phase), sizes.tokens * sizes.top_k);
        let fp8 = forms.any(phase, unit, |ways| ways.back.quantised && !ways.back.copied);
        Self {
            rows: packer.take_once(block, entries * hidden),
            fp8: fp8.then(|| {
                let scales = entries * hidden.div_ceil(TILE);
                (packer.take_once(block, entries * hidden), packer.take_once(block, scales))
            }),
        }
    }
}

impl Passage {
    /// Of a part, in a phase. `fp8`: the job sends to experts in FP8; `capacity`: rows that the part's experts have room for, and `landing` how
    /// many of them, in FP8, may come where experts do not read them.
    pub fn new(
        sizes: Sizes,
        (forms, unit): (&Forms, usize),
        phase: Phase,
        (tokens, capacity, landing): (Range<usize>, usize, usize),
        (hidden, fp8): (usize, bool),
        packer: &mut Packer,
    ) -> Self {
        let Sizes { places, top_k, experts, .. } = sizes;
        let (block, count, entries) = (scratch(phase), tokens.len(), tokens.len() * top_k);
        let there =
            |has: fn(Form, bool) -> bool| forms.any(phase, unit, |ways| has(ways.there, ways.there.quantised || fp8));
        let back = |has: fn(Form) -> bool| forms.any(phase, unit, |ways| has(ways.back));
        let narrow = fp8 || there(|form, _| form.quantised);
        let copied = there(|form, _| form.copied);
        let sent = narrow.then(|| Tiles::take(packer, block, count, hidden));
        let landed = narrow.then(|| {
            let scales = capacity * hidden.div_ceil(TILE);
            (packer.take(block, landing * hidden), packer.take(block, scales))
        });
        let all = places * count * hidden;
        let mut wide = |wanted: bool| wanted.then(|| packer.take_once(block, all));
        let staged = wide(there(|form, narrow| form.copied && !narrow));
        let back_staged = wide(back(|form| form.copied && !form.quantised));
        let back_packed = wide(back(|form| form.copied));
        let mut tiles = |wanted: bool| wanted.then(|| Tiles::take_once(packer, block, places * count, hidden));
        let staged_fp8 = tiles(there(|form, narrow| form.copied && narrow));
        let back_staged_fp8 = tiles(back(|form| form.copied && form.quantised));
        let back_packed_fp8 = tiles(back(|form| form.copied && form.quantised));
        let back_copied = back(|form| form.copied);
        Self {
            chosen: (copied && phase == Phase::F).then(|| Chosen {
                experts: packer.take_once(block, places * entries),
                weights: packer.take_once(block, places * entries),
                words: packer.take_once(block, packed::scratch(experts, places, entries)),
            }),
            back: Back {
                sent: back(|form| form.quantised && !form.copied)
                    .then(|| Tiles::take_once(packer, block, capacity, hidden)),
                row_of: back_copied.then(|| packer.take_once(block, places * entries)),
                packed: back_packed,
                staged: back_staged,
                packed_fp8: back_packed_fp8,
                staged_fp8: back_staged_fp8,
                numbers: (back_copied && phase == Phase::I)
                    .then(|| [(); 2].map(|()| packer.take_once(block, places * entries))),
            },
            tokens,
            hidden,
            top_k,
            fp8,
            sent,
            landed,
            staged,
            staged_fp8,
        }
    }

    /// Its tokens.
    pub fn tokens(&self) -> Range<usize> {
        self.tokens.clone()
    }

    /// Its entries, of those of all tokens.
    pub fn entries(&self) -> Range<usize> {
        self.tokens.start * self.top_k..self.tokens.end * self.top_k
    }

    /// Whether rows go to the experts in FP8.
    pub fn is_narrow(&self, form: Form) -> bool {
        form.quantised || self.fp8
    }

    /// Quantises what is sent to experts: of `x`, all tokens × hidden, the part's.
    pub fn quantise(&self, context: &Context, x: Slice<Bf16>) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (to, rows) = (here(self.sent)?.at(blocks), Rows::exactly(self.tokens.len()));
        quantise::rows(stream, sms, self.own(x), to, self.hidden, rows, SENT)
    }

    /// In front of copy engines, to the experts: what the job sends in FP8 is quantised. Else everything lies as it is sent.
    pub fn pack(&self, context: &Context, form: Form, x: Slice<Bf16>) -> Result<()> {
        if self.fp8 && !form.quantised { self.quantise(context, x) } else { Ok(()) }
    }

    /// Sends the part's rows of `x` to the experts. `first`: in F, where it is not known yet where they go.
    pub fn send(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        (form, first): (Form, bool),
        x: Slice<Bf16>,
        routed: &Routed,
        target: Target,
    ) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (on, tokens, hidden) = ((stream, exchange.watch), self.tokens(), self.hidden);
        let narrow = self.is_narrow(form);
        if form.copied {
            return self.copy(context, exchange, (narrow, first), x, routed);
        }
        if !narrow {
            let Target::Bf16(arrived) = target else { return Err(missing()) };
            return match first {
                true => exchange.member.dispatch(on, sms, x, hidden, tokens, routed, arrived),
                false => exchange.member.combine_gradient(on, sms, x, hidden, tokens, routed, arrived),
            };
        }
        if !form.quantised {
            self.quantise(context, x)?;
        }
        let (values, scales) = here(self.landed)?;
        let values = match target {
            Target::Fp8(tiles) => tiles.values,
            Target::Bf16(_) => blocks.at(values),
        };
        let (arrived, sent) = (Arrived { values, scales: blocks.at(scales) }, here(self.sent)?.at(blocks));
        match first {
            true => exchange.member.dispatch_fp8(on, sms, sent, hidden, tokens, routed, arrived),
            false => exchange.member.combine_gradient_fp8(on, sms, sent, hidden, tokens, routed, arrived),
        }
    }

    fn copy(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        (narrow, first): (bool, bool),
        x: Slice<Bf16>,
        routed: &Routed,
    ) -> Result<()> {
        let &Context { stream, blocks, .. } = context;
        let place = exchange.member.place();
        let (own, staged) = self.all(blocks, narrow, x)?;
        let ((own, own_scales), (staged, staged_scales)) = (own.parts(), staged.parts());
        let mut copies = vec![(own, nth(staged, place, own.len()))];
        if narrow {
            copies.push((own_scales.cast(), nth(staged_scales, place, own_scales.len()).cast()));
        }
        if first {
            let chosen = self.chosen.as_ref().ok_or_else(missing)?;
            let entries = self.entries().len();
            copies.push((routed.experts.cast(), nth(blocks.at(chosen.experts), place, entries).cast()));
            copies.push((routed.weights.cast(), nth(blocks.at(chosen.weights), place, entries).cast()));
        }
        exchange.member.copy((stream, exchange.watch), |_| copies.clone())
    }

    /// What of all tokens of the part is here when copy engines have done their work: of this place, and of the others.
    fn all(&self, blocks: &Blocks, narrow: bool, x: Slice<Bf16>) -> Result<(Values, Values)> {
        Ok(match narrow {
            true => (Values::Fp8(here(self.sent)?.at(blocks)), Values::Fp8(here(self.staged_fp8)?.at(blocks))),
            false => (Values::Bf16(self.own(x)), Values::Bf16(blocks.at(here(self.staged)?))),
        })
    }

    /// On the compute stream, before experts read what was sent: to where they do. `first` as in [`Self::send`], `x` too.
    pub fn receive(
        &self,
        context: &Context,
        exchange: &Exchange,
        (form, first): (Form, bool),
        x: Slice<Bf16>,
        routed: &Routed,
        target: Target,
    ) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (narrow, rows) = (self.is_narrow(form), routed.count());
        if !narrow && !form.copied {
            return Ok(());
        }
        let landed = || -> Result<(Slice<Fp8>, Slice<f32>)> {
            let (values, scales) = here(self.landed)?;
            Ok((blocks.at(values), blocks.at(scales)))
        };
        if form.copied {
            let cut = exchange.member.cut(self.tokens());
            if first {
                self.find(context, exchange, cut, routed)?;
            }
            let (own, staged) = self.all(blocks, narrow, x)?;
            let to = match (target, narrow) {
                (Target::Bf16(values), false) => Values::Bf16(values),
                (Target::Fp8(tiles), true) => Values::Fp8(tiles),
                (Target::Bf16(_), true) => {
                    let (values, scales) = landed()?;
                    Values::Fp8(Tiled { values, scales })
                }
                (Target::Fp8(_), false) => return Err(missing()),
            };
            packed::gather(stream, sms, cut, OfAll { own, staged }, self.hidden, (routed.sources, rows), to)?;
        }
        match target {
            Target::Bf16(values) if narrow => {
                let (bytes, scales) = landed()?;
                let scales = if form.copied { RowScales::ByTile(scales) } else { RowScales::ByRow(scales) };
                quantise::dequantise_rows(stream, sms, (bytes, scales), values, self.hidden, rows)
            }
            Target::Fp8(tiles) if !form.copied => {
                let scales = landed()?.1;
                quantise::turn_scales(stream, sms, scales, tiles.scales, self.hidden.div_ceil(TILE), rows)
            }
            Target::Bf16(_) | Target::Fp8(_) => Ok(()),
        }
    }

    fn find(&self, context: &Context, exchange: &Exchange, cut: Cut, routed: &Routed) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let chosen = self.chosen.as_ref().ok_or_else(missing)?;
        let experts = OfAll { own: routed.experts, staged: blocks.at(chosen.experts) };
        let weights = OfAll { own: routed.weights, staged: blocks.at(chosen.weights) };
        let &Routed { rows, offsets, sources, row_weights, .. } = routed;
        let found = Found { rows, offsets, sources, row_weights };
        exchange.member.find((stream, sms), cut, experts, weights, &found, blocks.at(chosen.words))
    }

    /// Quantises what the experts made, capacity × hidden, if SMs send it; copy engines send sums, which [`Self::pack_back`] quantises.
    pub fn quantise_back(&self, context: &Context, form: Form, results: Slice<Bf16>, routed: &Routed) -> Result<()> {
        if form.copied {
            return Ok(());
        }
        let &Context { stream, sms, blocks, .. } = context;
        quantise::rows(stream, sms, results, here(self.back.sent)?.at(blocks), self.hidden, routed.count(), RETURNED)
    }

    /// In front of copy engines: what goes back to each place. `numbers`: in I one of each row.
    pub fn pack_back(
        &self,
        context: &Context,
        exchange: &Exchange,
        form: Form,
        (results, numbers): (Slice<Bf16>, Slice<f32>),
        routed: &Routed,
    ) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (cut, hidden) = (exchange.member.cut(self.tokens()), self.hidden);
        let packed = blocks.at(here(self.back.packed)?);
        let own = if form.quantised { packed } else { blocks.at(here(self.back.staged)?) };
        let numbers = self.back.numbers.map(|spots| {
            let [others, own] = spots.map(|spot| blocks.at(spot));
            (numbers, [own, others])
        });
        let (rows, row_of) = ((routed.sources, routed.count()), blocks.at(here(self.back.row_of)?));
        packed::pack(stream, sms, cut, (results, hidden), rows, row_of, [own, packed], numbers)?;
        if !form.quantised {
            return Ok(());
        }
        let [others, own] = [self.back.packed_fp8, self.back.staged_fp8].map(|tiles| Ok(here(tiles)?.at(blocks)));
        let (others, own): (Tiled, Tiled) = (others?, own?);
        for place in 0..cut.places {
            let to = of_place(if place == cut.place { own } else { others }, place, cut.places);
            let sums = nth(packed, place, cut.tokens * hidden);
            quantise::rows(stream, sms, sums, to, hidden, Rows::exactly(cut.tokens), RETURNED)?;
        }
        Ok(())
    }

    /// Sends back what the experts made; in I with a number of each row, which goes to `returned_numbers` (of all entries).
    pub fn send_back(
        &self,
        context: &Context,
        exchange: &mut Exchange,
        form: Form,
        (results, numbers): (Slice<Bf16>, Slice<f32>),
        routed: &Routed,
        (returned, returned_numbers): (&Returns, Slice<f32>),
    ) -> Result<()> {
        let &Context { stream, sms, blocks, .. } = context;
        let (on, hidden) = ((stream, exchange.watch), self.hidden);
        if !form.copied {
            if form.quantised {
                let (values, scales) = here(returned.fp8)?;
                let to = Arrived { values: blocks.at(values), scales: blocks.at(scales) };
                let sent = here(self.back.sent)?.at(blocks);
                let (from, to) = ((sent, numbers), (to, returned_numbers));
                return exchange.member.give_back_fp8(on, sms, from, hidden, routed, to);
            }
            let to = blocks.at(returned.rows);
            return match numbers.is_empty() {
                true => exchange.member.combine(on, sms, results, hidden, routed, to),
                false => {
                    let to = (to, returned_numbers);
                    exchange.member.dispatch_gradient(on, sms, (results, numbers), hidden, routed, to)
                }
            };
        }
        let (place, places) = (exchange.member.place(), exchange.member.places());
        let (values, entries) = (self.tokens.len() * hidden, self.entries().len());
        let narrow = match form.quantised {
            true => Some((here(self.back.packed_fp8)?.at(blocks), here(self.back.staged_fp8)?.at(blocks))),
            false => None,
        };
        let wide = match form.quantised {
            true => None,
            false => Some((blocks.at(here(self.back.packed)?), blocks.at(here(self.back.staged)?))),
        };
        let numbers = self.back.numbers.map(|spots| spots.map(|spot| blocks.at(spot)));
        exchange.member.copy(on, |other| {
            let mut copies = Vec::new();
            if let Some((from, to)) = wide {
                copies.push((nth(from, other, values).cast(), nth(to, place, values).cast()));
            }
            if let Some((from, to)) = narrow {
                let (from, to) = (of_place(from, other, places), of_place(to, place, places));
                copies.extend([(from.values.cast(), to.values.cast()), (from.scales.cast(), to.scales.cast())]);
            }
            if let Some([from, to]) = numbers {
                copies.push((nth(from, other, entries).cast(), nth(to, place, entries).cast()));
            }
            copies
        })
    }

    /// What came back for the part's tokens, and how many rows for each. `places` of the group.
    pub fn returned(
        &self,
        blocks: &Blocks,
        form: Form,
        returned: &Returns,
        places: usize,
    ) -> Result<(Returned, usize)> {
        let (hidden, entries) = (self.hidden, self.entries());
        let of_entries = |width: usize| entries.start * width..entries.end * width;
        Ok(match (form.copied, form.quantised) {
            (false, false) => (Returned::ByToken(blocks.at(returned.rows).part(of_entries(hidden))), self.top_k),
            (false, true) => {
                let (values, scales) = here(returned.fp8)?;
                let scales = blocks.at(scales).part(of_entries(hidden.div_ceil(TILE)));
                (Returned::ByTokenFp8(blocks.at(values).part(of_entries(hidden)), scales), self.top_k)
            }
            (true, false) => (Returned::ByPlace(blocks.at(here(self.back.staged)?)), places),
            (true, true) => {
                let Tiled { values, scales } = here(self.back.staged_fp8)?.at(blocks);
                (Returned::ByPlaceFp8(values, scales), places)
            }
        })
    }

    /// In I: the gradients of the weights of the part's entries, into `d_weights` (of all entries), where SMs have not brought them there.
    pub fn weights_gradient(&self, context: &Context, form: Form, places: usize, d_weights: Slice<f32>) -> Result<()> {
        match self.back.numbers.filter(|_| form.copied) {
            None => Ok(()),
            Some([_, staged]) => {
                let (numbers, to) = (context.blocks.at(staged), d_weights.part(self.entries()));
                packed::sum_numbers(context.stream, context.sms, numbers, places, to)
            }
        }
    }

    /// Adds up what came back for the part's tokens, and what else there is of them: `add` and `y` are of all tokens.
    pub fn sum(
        &self,
        context: &Context,
        (form, places): (Form, usize),
        returned: &Returns,
        add: [Slice<Bf16>; 2],
        y: Slice<Bf16>,
    ) -> Result<()> {
        let returned = self.returned(context.blocks, form, returned, places)?;
        let add = add.map(|add| if add.is_empty() { add } else { self.own(add) });
        exchange::sum(context.stream, context.sms, returned, self.hidden, add, self.own(y))
    }

    /// The part's rows of all tokens'.
    fn own(&self, x: Slice<Bf16>) -> Slice<Bf16> {
        x.part(self.tokens.start * self.hidden..self.tokens.end * self.hidden)
    }
}

fn nth<E: crate::runtime::cuda::Element>(all: Slice<E>, number: usize, len: usize) -> Slice<E> {
    all.part(number * len..(number + 1) * len)
}

/// What of tiles is a place's: its rows, and their scales, which lie together.
fn of_place(all: Tiled, place: usize, places: usize) -> Tiled {
    let (values, scales) = (all.values.len() / places, all.scales.len() / places);
    Tiled { values: nth(all.values, place, values), scales: nth(all.scales, place, scales) }
}

fn here<V>(value: Option<V>) -> Result<V> {
    value.ok_or_else(missing)
}

/// Cannot be: there is room for every form that a program of the stage has.
fn missing() -> Error {
    Error::new("an exchange in a form that no program of the stage has")
}
