//! What annotations and kernels stand for: rules by name, from a RON file, and those that come with dualweave (`defaults.ron`).
//!
//! ```ron
//! (
//!     annotations: [
//!         (name: "my_block*/attention", component: Attention),
//!         (name: "*bwd*", phase: B),
//!     ],
//!     kernels: [(name: "*my_all_to_all*", component: Dispatch, in_backward: Combine)],
//!     communication: ["*my_all_to_all*"],
//!     defaults: true, // the others follow
//! )
//! ```
//!
//! In a name `*` stands for anything, `?` for one character and `#` for digits; capitals do not count. Of the rules that fit, the
//! first one that says a component gives the component, and the first one that says a phase the phase.

use ron::Options;
use ron::extensions::Extensions;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The rules that come with dualweave.
const DEFAULTS: &str = include_str!("defaults.ron");

/// Rules of a file, patterns of a rule's name: more are a mistake.
const MOST_RULES: usize = 10_000;
const LONGEST_NAME: usize = 500;

/// What a GPU's time goes to: a layer's components, and what else a training step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Part {
    /// Token embedding.
    Embedding,
    /// Norms, projections, attention core, router.
    Attention,
    /// The all-to-all that takes tokens to their experts.
    Dispatch,
    /// Experts, or a dense MLP.
    Mlp,
    /// The all-to-all that brings expert outputs back.
    Combine,
    /// Final norm, output head and loss.
    Head,
    /// Between pipeline ranks.
    Transfer,
    /// Gradients that are reduced.
    Reduction,
    /// Parameters that are gathered.
    Gather,
    /// Optimizer.
    Optimizer,
    /// What no rule names.
    Other,
}

impl Part {
    /// In few letters, as `overlap --components` reads them.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attn",
            Self::Dispatch => "dispatch",
            Self::Mlp => "mlp",
            Self::Combine => "combine",
            Self::Head => "head",
            Self::Transfer => "pipeline transfers",
            Self::Reduction => "gradient reduction",
            Self::Gather => "parameters gathered",
            Self::Optimizer => "optimizer",
            Self::Other => "other",
        }
    }

    /// Whether it is done in phases.
    pub fn has_phases(self) -> bool {
        self <= Self::Head
    }

    /// Whether all that is done for it counts as communication.
    pub fn is_exchange(self) -> bool {
        matches!(self, Self::Dispatch | Self::Combine)
    }

    /// Whether kernels that communicate may belong to it.
    pub fn communicates(self) -> bool {
        self.is_exchange() || matches!(self, Self::Transfer | Self::Reduction | Self::Gather)
    }
}

/// A part of training, as far as a trace tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Phase {
    /// Forward.
    F,
    /// Backward: all of it, or all but what is told apart as W.
    B,
    /// Backward for the input.
    I,
    /// Weight gradient.
    W,
}

impl Phase {
    /// Its letter.
    pub fn letter(self) -> &'static str {
        match self {
            Self::F => "F",
            Self::B => "B",
            Self::I => "I",
            Self::W => "W",
        }
    }
}

/// What names stand for.
#[derive(Clone, Debug)]
pub struct Rules {
    annotations: Vec<AnnotationRule>,
    kernels: Vec<KernelRule>,
    communication: Vec<Pattern>,
}

/// What an annotation says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub part: Option<Part>,
    pub phase: Option<Phase>,
}

/// A file of rules.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    annotations: Vec<AnnotationRule>,
    kernels: Vec<KernelRule>,
    communication: Vec<Pattern>,
    /// Whether the rules that come with dualweave follow.
    defaults: bool,
}

impl Default for File {
    fn default() -> Self {
        Self { annotations: Vec::new(), kernels: Vec::new(), communication: Vec::new(), defaults: true }
    }
}

/// For annotations, modules included.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AnnotationRule {
    name: Pattern,
    #[serde(default)]
    component: Option<Part>,
    #[serde(default)]
    phase: Option<Phase>,
}

/// For kernels whose annotations say no component, and for those that communicate within one that only computes.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KernelRule {
    name: Pattern,
    /// What NCCL says that it does; kernels of several collectives bear the same name.
    #[serde(default)]
    collective: Option<Pattern>,
    component: Part,
    /// In the backward pass, if it is another there: tokens go back to where they came from by the other kernel.
    #[serde(default)]
    in_backward: Option<Part>,
}

impl Default for Rules {
    fn default() -> Self {
        Self::read("the default rules", DEFAULTS).expect("what comes with dualweave is read by its tests")
    }
}

impl Rules {
    /// Reads a file of rules. `name` is the file's, for messages.
    ///
    /// # Errors
    /// If it is no such file, or a rule says nothing.
    pub fn read(name: &str, text: &str) -> Result<Self> {
        let options = Options::default().with_default_extension(Extensions::IMPLICIT_SOME);
        let form = "rules are `(annotations: [(name: \"attn*\", component: Attention, phase: F)], kernels: [..], \
                    communication: [\"nccl*\"])`";
        let file: File =
            options.from_str(text).map_err(|error| crate::error::from_ron(name, text, &error).help(form))?;
        let File { annotations, kernels, communication, defaults } = file;
        let mut rules = Self { annotations, kernels, communication };
        if let Some(at) = rules.annotations.iter().position(|rule| rule.component.is_none() && rule.phase.is_none()) {
            let pattern = &rules.annotations[at].name.0;
            return Err(Error::new(format!("rule {} of `annotations` in `{name}`, `{pattern}`, says nothing", at + 1))
                .help("give a component, a phase, or both"));
        }
        let count = rules.annotations.len() + rules.kernels.len() + rules.communication.len();
        if count > MOST_RULES {
            return Err(Error::new(format!("`{name}` has {count} rules, more than {MOST_RULES}"))
                .help("let `*` stand for what differs"));
        }
        let patterns = rules.annotations.iter().map(|rule| &rule.name);
        let patterns = patterns.chain(rules.kernels.iter().map(|rule| &rule.name)).chain(&rules.communication);
        let mut patterns = patterns.chain(rules.kernels.iter().filter_map(|rule| rule.collective.as_ref()));
        if let Some(Pattern(pattern)) = patterns.find(|pattern| !(1..=LONGEST_NAME).contains(&pattern.0.len())) {
            let message = match pattern.is_empty() {
                true => format!("a name in `{name}` is empty"),
                false => format!("a name in `{name}` is longer than {LONGEST_NAME} bytes"),
            };
            return Err(Error::new(message).help("`*` stands for anything"));
        }
        if defaults {
            let others = Self::default();
            rules.annotations.extend(others.annotations);
            rules.kernels.extend(others.kernels);
            rules.communication.extend(others.communication);
        }
        Ok(rules)
    }

    /// What an annotation says.
    pub(super) fn annotation(&self, name: &str) -> Said {
        let fitting = || self.annotations.iter().filter(|rule| rule.name.fits(name));
        Said { part: fitting().find_map(|rule| rule.component), phase: fitting().find_map(|rule| rule.phase) }
    }

    /// What a kernel does, by its own name.
    pub(super) fn kernel(&self, name: &str, collective: Option<&str>, backward: bool) -> Option<Part> {
        let rule = self.kernels.iter().find(|rule| {
            let same = |pattern: &Pattern| collective.is_some_and(|collective| pattern.fits(collective));
            rule.name.fits(name) && rule.collective.as_ref().is_none_or(same)
        })?;
        Some(rule.in_backward.filter(|_| backward).unwrap_or(rule.component))
    }

    /// Whether a kernel communicates.
    pub(super) fn communicates(&self, name: &str) -> bool {
        self.communication.iter().any(|pattern| pattern.fits(name))
    }
}

/// A name with wildcards.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
struct Pattern(String);

impl Pattern {
    fn fits(&self, name: &str) -> bool {
        fits(self.0.as_bytes(), name.as_bytes())
    }
}

/// Whether the whole name is what the pattern says. Takes the product of their lengths at most.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    // The last `*`, and how far it reaches.
    let mut star: Option<(usize, usize)> = None;
    loop {
        let rest = &name[from..];
        let step = match pattern.get(at) {
            None if rest.is_empty() => return true,
            None => None,
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
                continue;
            }
            Some(b'?') => {
                // Of a character, not of its bytes.
                let more = rest.iter().skip(1).take_while(|&&byte| byte & 0xC0 == 0x80).count();
                (!rest.is_empty()).then_some(1 + more)
            }
            Some(b'#') => {
                Some(rest.iter().take_while(|byte| byte.is_ascii_digit()).count()).filter(|&digits| digits > 0)
            }
            Some(letter) => rest.first().filter(|byte| byte.eq_ignore_ascii_case(letter)).map(|_| 1),
        };
        match (step, star) {
            (Some(length), _) => (at, from) = (at + 1, from + length),
            (None, Some((place, reach))) if reach < name.len() => {
                star = Some((place, reach + 1));
                (at, from) = (place + 1, reach + 1);
            }
            (None, _) => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name) in [
            ("attn(?)", "Attn(F)"),
            ("*", ""),
            ("*dispatch*", "void deep_ep::dispatch<8>()"),
            ("a*b*c", "axxbxbc"),
            ("pp:#f#", "PP:12F3"),
            ("nn.Module: *_#", "nn.Module: MoE_12"),
            ("?", "é"),
            ("*#", "a12"),
            ("**a", "a"),
        ] {
            assert!(fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in
            [("attn", "attn(F)"), ("", "a"), ("?", ""), ("#", "a"), ("a#", "a1b"), ("a*b", "abc"), ("PP:#F#", "PP:F1")]
        {
            assert!(!fits(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }

    #[test]
    fn the_defaults_know_the_usual_names() {
        let rules = Rules::read("the default rules", DEFAULTS).expect("they are read");
        use Part::{Attention, Combine, Dispatch, Embedding, Gather, Mlp, Optimizer, Reduction, Transfer};
        use Phase::{B, F, I, W};
        for (name, part, phase) in [
            ("attn(F)", Some(Attention), Some(F)),
            ("mlp(B)", Some(Mlp), Some(B)),
            ("mlp(W)", Some(Mlp), Some(W)),
            ("dispatch(B)", Some(Dispatch), Some(B)),
            ("moe_dispatch forward", Some(Dispatch), Some(F)),
            ("moe_combine backward", Some(Combine), Some(B)),
            ("mlp wgrad", Some(Mlp), Some(W)),
            ("attention", Some(Attention), None),
            ("nn.Module: TransformerBlock_31", Some(Attention), None),
            ("nn.Module: GroupedExperts_0", Some(Mlp), None),
            ("nn.Module: Embedding_0", Some(Embedding), None),
            ("nn.Module: Linear_3", None, None),
            ("PP:3F12", None, Some(F)),
            ("PP:3B12", None, Some(B)),
            ("PP:0I4", None, Some(I)),
            ("PP:0W4", None, Some(W)),
            ("PP:(0F2;7B1)OVERLAP_F_B", None, None),
            ("PP:0SEND_F3", Some(Transfer), None),
            ("Backward 3", None, Some(B)),
            ("backward_stage_7_mb_1", None, Some(B)),
            ("FSDP::all_gather (layers.3.attention)", Some(Gather), None),
            ("FSDP::post_backward_reduce (layers.3)", Some(Reduction), None),
            ("Optimizer.step#AdamW.step", Some(Optimizer), None),
            ("nccl:all_to_all", None, None),
            ("ProfilerStep#3", None, None),
        ] {
            assert_eq!(rules.annotation(name), Said { part, phase }, "{name}");
        }
        let dispatch = "void deep_ep::internode::dispatch<false, 8>(int4*)";
        assert_eq!(rules.kernel(dispatch, None, false), Some(Dispatch));
        assert_eq!(rules.kernel(dispatch, None, true), Some(Combine));
        let nccl = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)";
        assert_eq!(rules.kernel(nccl, Some("send"), false), Some(Transfer));
        assert_eq!(rules.kernel(nccl, Some("all_to_allv"), false), None);
        assert!(rules.communicates(dispatch) && rules.communicates(nccl));
        assert!(!rules.communicates("nvjet_sm90_tst_64x64_64x13_4x2_h_bz_TNT"));
    }

    #[test]
    fn own_rules_come_first() {
        let text = "(annotations: [(name: \"attn*\", component: Mlp), (name: \"x\", phase: W)])";
        let rules = Rules::read("rules.ron", text).expect("rules");
        assert_eq!(rules.annotation("attn(F)"), Said { part: Some(Part::Mlp), phase: Some(Phase::F) });
        assert_eq!(rules.annotation("mlp").part, Some(Part::Mlp));
        let alone = Rules::read("rules.ron", &text.replace("(annotations", "(defaults: false, annotations"));
        assert_eq!(alone.expect("rules").annotation("mlp").part, None);
    }

    #[test]
    fn rules_that_are_none_are_refused() {
        for (text, message) in [
            ("(annotations: [(name: \"a\")])", "rule 1 of `annotations` in `rules.ron`, `a`, says nothing"),
            ("(annotations: [(name: \"a\", component: Router)])", "Unexpected variant named `Router`"),
            ("(annotation: [])", "Unexpected field named `annotation`"),
            ("(communication: [\"\"])", "is empty"),
            ("[", "cannot be read"),
        ] {
            let error = Rules::read("rules.ron", text).expect_err(text);
            assert!(error.message().contains(message), "{text}: {error}");
            assert!(error.help_text().is_some(), "{text}");
        }
    }
}
