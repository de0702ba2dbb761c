//! Equality saturation of one layer: every program that the rules reach from the plain one, in one e-graph. Once for each
//! kind of layer.

use std::collections::BTreeSet;
use std::time::Duration;

use egg::{EGraph, Id, Runner, SimpleScheduler, StopReason};

use super::analysis::{Facts, Layer, LeafLoad, Load};
use super::language::{Leaf, LeafPhase, Programs, Term};
use super::rules::{RULES, Rule};
use crate::error::{Error, Result};
use crate::ir::Component;

/// What saturation may do. Limits are counts: the same inputs give the same graph on any machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Names of rules that are not used.
    pub off: BTreeSet<String>,
    /// Rounds in which every rule is tried everywhere.
    pub iterations: usize,
    /// E-nodes. A round that has begun may make more.
    pub nodes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { off: BTreeSet::new(), iterations: 30, nodes: 20_000 }
    }
}

/// Why saturation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// No rule finds anything new: the graph has every program.
    Saturated,
    /// A limit. The graph has programs that are right, not all of them.
    Limit,
}

/// The programs of a layer.
pub struct Saturated<'a> {
    /// All of them.
    pub programs: Programs<'a>,
    /// The forward's class.
    pub forward: Id,
    /// The backward's (for input and weights).
    pub backward: Id,
    /// Why it has no more.
    pub stopped: Stopped,
    /// Rounds.
    pub iterations: usize,
}

/// The plain forward and backward of a layer: one op after the other.
pub fn plain(layer: Layer, site: u16) -> [Term; 2] {
    use Component::{Attention, Combine, Dispatch, Mlp};
    let chain = |components: &[Component], phase: fn(Component) -> LeafPhase| {
        let there = components.iter().filter(|component| layer.exchanges || !matches!(component, Dispatch | Combine));
        Term::Seq(there.map(|&component| Term::Leaf(Leaf::whole(component, phase(component), site))).collect())
    };
    let backward = |component| match component {
        Dispatch | Combine => LeafPhase::I,
        _ => LeafPhase::B,
    };
    [
        chain(&[Attention, Dispatch, Mlp, Combine], |_| LeafPhase::F),
        chain(&[Combine, Mlp, Dispatch, Attention], backward),
    ]
}

/// Every program of a layer that the rules reach from the [`plain`] ones.
///
/// # Errors
/// If a rule that is to be left out does not exist.
pub fn saturate<'a>(layer: Layer, load: LeafLoad<'a>, options: &Options) -> Result<Saturated<'a>> {
    let [forward, backward] = plain(layer, 0);
    saturate_from(layer, load, options, [&forward, &backward])
}

/// [`saturate`], from other programs than the plain ones: a forward and a backward.
///
/// # Errors
/// As [`saturate`].
pub fn saturate_from<'a>(
    layer: Layer,
    load: LeafLoad<'a>,
    options: &Options,
    start: [&Term; 2],
) -> Result<Saturated<'a>> {
    if let Some(name) = options.off.iter().find(|name| RULES.iter().all(|rule| rule.name != **name)) {
        let known: Vec<&str> = RULES.iter().map(|rule| rule.name).collect();
        return Err(
            Error::new(format!("there is no rewrite rule `{name}`")).help(format!("rules: {}", known.join(", ")))
        );
    }
    let used = RULES.into_iter().filter(|rule| !options.off.contains(rule.name));
    let rules = used.map(Rule::rewrite).collect::<std::result::Result<Vec<_>, String>>().map_err(Error::new)?;

    let mut programs = EGraph::new(Facts::new(layer, load));
    let roots = start.map(|term| term.add_to(&mut programs));
    programs.rebuild();
    let runner = Runner::<_, _, ()>::new(Facts::new(layer, load))
        .with_egraph(programs)
        .with_iter_limit(options.iterations)
        .with_node_limit(options.nodes)
        .with_time_limit(Duration::MAX)
        .with_scheduler(SimpleScheduler)
        .run(&rules);
    let stopped = match runner.stop_reason {
        Some(StopReason::Saturated) => Stopped::Saturated,
        _ => Stopped::Limit,
    };
    let [forward, backward] = roots.map(|root| runner.egraph.find(root));
    Ok(Saturated { forward, backward, stopped, iterations: runner.iterations.len(), programs: runner.egraph })
}

impl Saturated<'_> {
    /// E-nodes.
    pub fn nodes(&self) -> usize {
        self.programs.total_number_of_nodes()
    }

    /// E-classes.
    pub fn classes(&self) -> usize {
        self.programs.number_of_classes()
    }

    /// For each engine, the least that a forward and a backward together load it. `None` if one of them has no program.
    pub fn least(&self) -> Option<Load> {
        let of = |root| self.programs[root].data.least;
        Some(of(self.forward)?.sum(of(self.backward)?))
    }
}
