//! The least time of the work of layers, in whatever form and order their ops run.
//!
//! The argument: exchanges of a rank run one after the other. Beside one that SMs drive, computation has only the SMs that it leaves; apart
//! from them, or beside a copy engine, it has all. So the time of a program is at least that of its exchanges, each in the form in which it is
//! the shortest, and of the computation that does not find room beside them. Which computation goes beside them is chosen for the least time:
//! kernels that lose least by having fewer SMs first, the last of them in part (a fractional knapsack). Rewrites change nothing of this: they
//! add kernels or cut them, but never do with less, and which forms of an exchange they can take is known. What ops that overlap lose to
//! each other besides is left out.
//!
//! What holds for one program holds for all that a rank runs, so times of layers that run on several ranks are bounded together.

use crate::ir::{Component, Phase, Unit, Work};
use crate::job::Job;
use crate::job::training::PairOrder;
use crate::machine::Machine;
use crate::passes::lower::alike;
use crate::passes::rewrite;
use crate::passes::unit_work::pieces::{self, Carrier, ExchangeForm, Payload, Piece, Route};
use crate::passes::unit_work::{UnitOp, UnitParameters, UnitWork, unit_work, units};
use crate::units::Bytes;

/// What rounding can take from the time of an op, in ns: it is cut in two parts at most.
const ROUNDING: f64 = 1.0;

/// Phases, as places in lists.
const PHASES: [Phase; 3] = [Phase::F, Phase::I, Phase::W];

/// A kind of unit: all that do the same work.
#[derive(Clone, Debug, PartialEq)]
pub struct Kind {
    /// One that stands for all.
    pub unit: Unit,
    /// How many the model has.
    pub count: u32,
    /// What it does and holds.
    pub work: UnitWork,
    /// By phase and op, what forms rewrites may give it: of exchanges.
    forms: [Vec<Vec<Work>>; 3],
}

impl Kind {
    /// The kinds of a job's units, in the order in which they come first.
    pub fn all(job: &Job) -> Vec<Self> {
        let rewritten = is_rewritten(job);
        let mut kinds: Vec<Self> = Vec::new();
        for unit in units(job) {
            let unit = alike(job, unit);
            match kinds.iter_mut().find(|kind| kind.unit == unit) {
                Some(kind) => kind.count += 1,
                None => {
                    let work = unit_work(job, unit, job.training.recompute);
                    let mut kind = Self { unit, count: 1, work, forms: Default::default() };
                    if rewritten {
                        let of = |phase| kind.ops(phase).map(|op| forms(job, unit, op.component, phase)).collect();
                        kind.forms = PHASES.map(of);
                    }
                    kinds.push(kind);
                }
            }
        }
        kinds
    }

    /// What one micro-batch keeps of it between forward and backward.
    pub fn activation(&self) -> Bytes {
        let held = &self.work.held;
        held.f_to_i.values().chain(held.f_to_w.values()).copied().sum()
    }

    /// Its parameters on a GPU.
    pub fn parameters(&self) -> UnitParameters {
        self.work.parameters
    }

    fn ops(&self, phase: Phase) -> impl Iterator<Item = &UnitOp> {
        let (again, own): (&[UnitOp], &[UnitOp]) = match phase {
            Phase::F => (&[], &self.work.f),
            Phase::I => (&self.work.again, &self.work.i),
            Phase::W => (&[], &self.work.w),
        };
        again.iter().chain(own)
    }
}

/// The work of units, where exchanges have some number of SMs. Times in ns, of one unit of each kind.
#[derive(Clone, Debug)]
pub struct Terms {
    kernels: Vec<KernelTerm>,
    exchanges: Vec<ExchangeTerm>,
    /// Whether the ops of a forward run one after the other, and those of a backward for the input: for they have only their plain form,
    /// and what is computed again does not wait for gradients.
    chained: [bool; 2],
}

#[derive(Clone, Copy, Debug)]
struct KernelTerm {
    kind: usize,
    phase: usize,
    /// With all SMs.
    full: f64,
    /// With those that exchanges leave.
    beside: f64,
}

#[derive(Clone, Copy, Debug)]
struct ExchangeTerm {
    kind: usize,
    phase: usize,
    time: f64,
    /// It may go by copy engine, and then leaves computation all SMs.
    free: bool,
}

/// How many units there are of each kind.
pub type Counts = [f64];

/// Which programs: the least time of each.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Least {
    /// Forward.
    pub f: f64,
    /// Backward for the input.
    pub i: f64,
    /// Weight gradients.
    pub w: f64,
    /// Whole backward.
    pub b: f64,
}

/// Phases of a program, by place in [`PHASES`].
type Mask = [bool; 3];

const F: Mask = [true, false, false];
const I: Mask = [false, true, false];
const W: Mask = [false, false, true];
const B: Mask = [false, true, true];
const FB: Mask = [true, true, true];

impl Terms {
    /// The work of `kinds` in `job`.
    pub fn new(job: &Job, machine: &Machine, kinds: &[Kind], sms: u32) -> Self {
        // What a profile says of an op need not hold for its parts: all may be as fast as the fastest.
        let fastest = machine.measured.least();
        let rewritten = is_rewritten(job);
        let mut terms = Self { kernels: Vec::new(), exchanges: Vec::new(), chained: [false; 2] };
        terms.chained = [!rewritten, !rewritten && kinds.iter().all(|kind| kind.work.again.is_empty())];
        for (kind, of) in kinds.iter().enumerate() {
            for (phase, &which) in PHASES.iter().enumerate() {
                for (at, op) in of.ops(which).enumerate() {
                    match &op.work {
                        Work::Compute(kernels) => terms.kernels.extend(kernels.iter().map(|kernel| {
                            let time = |sms: u32| (machine.kernel(kernel, sms).as_f64() * fastest - ROUNDING).max(0.0);
                            let full = time(machine.sms);
                            KernelTerm { kind, phase, full, beside: time(machine.sms - sms).max(full) }
                        })),
                        exchange => {
                            let forms = of.forms[phase].get(at).map_or(&[][..], Vec::as_slice);
                            let time = |work: &Work| {
                                let sms = machine.sms_of(work, sms);
                                (machine.modelled(work, sms).as_f64() * fastest - ROUNDING).max(0.0)
                            };
                            let all = || forms.iter().chain([exchange]);
                            terms.exchanges.push(ExchangeTerm {
                                kind,
                                phase,
                                time: all().map(time).fold(f64::INFINITY, f64::min),
                                free: all().any(|work| matches!(work, Work::Copy { .. })),
                            });
                        }
                    }
                }
            }
        }
        let gain = |term: &KernelTerm| if term.beside > 0.0 { term.full / term.beside } else { 1.0 };
        terms.kernels.sort_by(|one, other| gain(other).total_cmp(&gain(one)));
        terms
    }

    /// The least times of the programs of units, each phase by itself.
    pub fn least(&self, counts: &Counts) -> Least {
        let chain = |phase: usize, mask: Mask| if self.chained[phase] { self.chain(counts, mask) } else { 0.0 };
        let (f, i) = (self.knapsack(counts, F).max(chain(0, F)), self.knapsack(counts, I).max(chain(1, I)));
        let b = self.knapsack(counts, B).max(i);
        Least { f, i, w: self.knapsack(counts, W), b }
    }

    /// The least time of forwards of these units beside whole backwards of those.
    pub fn pair(&self, forward: &Counts, backward: &Counts) -> f64 {
        self.knapsack_of(|kind, phase| if phase == 0 { forward[kind] } else { backward[kind] })
    }

    /// The least time of forwards and whole backwards of these units, all on one rank.
    pub fn all(&self, counts: &Counts) -> f64 {
        self.knapsack(counts, FB)
    }

    /// The same one after the other, as layers in their plain form run them.
    pub fn in_series(&self, counts: &Counts) -> Least {
        let (f, i, w) = (self.chain(counts, F), self.chain(counts, I), self.chain(counts, W));
        Least { f, i, w, b: i.max(self.knapsack(counts, B)) }
    }

    /// The least time of forwards' computation, of one unit of a kind.
    pub fn forward_computation(&self, kind: usize) -> f64 {
        self.kernels.iter().filter(|term| (term.kind, term.phase) == (kind, 0)).map(|term| term.full).sum()
    }

    fn chain(&self, counts: &Counts, mask: Mask) -> f64 {
        let weight = |kind: usize, phase: usize| if mask[phase] { counts[kind] } else { 0.0 };
        let kernels: f64 = self.kernels.iter().map(|term| weight(term.kind, term.phase) * term.full).sum();
        kernels + self.exchanges.iter().map(|term| weight(term.kind, term.phase) * term.time).sum::<f64>()
    }

    fn knapsack(&self, counts: &Counts, mask: Mask) -> f64 {
        self.knapsack_of(|kind, phase| if mask[phase] { counts[kind] } else { 0.0 })
    }

    /// See the module.
    fn knapsack_of(&self, weight: impl Fn(usize, usize) -> f64) -> f64 {
        let (mut driven, mut free) = (0.0, 0.0);
        for term in &self.exchanges {
            *(if term.free { &mut free } else { &mut driven }) += weight(term.kind, term.phase) * term.time;
        }
        let (mut room, mut apart) = (driven, 0.0);
        for term in &self.kernels {
            let weight = weight(term.kind, term.phase);
            let beside = weight * term.beside;
            if beside <= room {
                room -= beside;
            } else {
                apart += weight * term.full * (1.0 - room / beside);
                room = 0.0;
            }
        }
        driven + f64::max(free, apart)
    }
}

/// Whether programs may have other forms than the plain one.
fn is_rewritten(job: &Job) -> bool {
    job.training.overlap == PairOrder::Search && !rewrite::none_allowed(job)
}

/// Every form that rewrites may give an exchange.
fn forms(job: &Job, unit: Unit, component: Component, phase: Phase) -> Vec<Work> {
    if !matches!(component, Component::Dispatch | Component::Combine) {
        return Vec::new();
    }
    let payloads: &[Payload] =
        if job.training.fp8_exchanges { &[Payload::AsGiven, Payload::Fp8] } else { &[Payload::AsGiven] };
    let mut found = Vec::new();
    for route in [Route::Flat, Route::TwoHop] {
        for &payload in payloads {
            for carrier in [Carrier::Sms, Carrier::CopyEngine] {
                let exchange = ExchangeForm { route, payload, carrier };
                let piece = Piece { exchange, ..Piece::whole(component, phase) };
                found.extend(pieces::work(job, unit, job.training.recompute, &piece));
            }
        }
    }
    found
}
