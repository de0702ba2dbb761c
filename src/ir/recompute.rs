//! What a stage computes again in its backward.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What is computed again in the backward pass instead of being stored from the forward pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Recompute {
    /// Outputs of the RMSNorms (DeepSeek-V3 does).
    pub norms: bool,
    /// MLA's up-projections: q, k and v (DeepSeek-V3 does).
    pub mla_up: bool,
    /// Output of the SwiGLU activation (DeepSeek-V3 does).
    pub swiglu: bool,
    /// Whole layers from their inputs, dispatch included (Megatron-LM's full recomputation). What of a layer the others name is
    /// then part of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub layer: bool,
}

impl Recompute {
    /// Nothing.
    pub const NOTHING: Self = Self { norms: false, mla_up: false, swiglu: false, layer: false };

    /// Whether nothing is computed again.
    pub fn is_nothing(&self) -> bool {
        *self == Self::NOTHING
    }

    /// What one of two computes again, or both.
    pub fn and(self, other: Self) -> Self {
        let layer = self.layer || other.layer;
        let either = |one: bool, other: bool| !layer && (one || other);
        Self {
            norms: either(self.norms, other.norms),
            mla_up: either(self.mla_up, other.mla_up),
            swiglu: either(self.swiglu, other.swiglu),
            layer,
        }
    }

    /// What the input gradient of a layer computes again by itself: nothing where the whole layer was made again before.
    pub fn within_layer(self) -> Self {
        if self.layer { Self::NOTHING } else { self }
    }

    /// The names of what is computed again.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let all = [(self.norms, "norms"), (self.mla_up, "mla-up"), (self.swiglu, "swiglu"), (self.layer, "layer")];
        all.into_iter().filter_map(|(on, name)| on.then_some(name))
    }
}

/// The names, as `--recompute` takes them: `norms,swiglu`, or `none`.
impl fmt::Display for Recompute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.names().collect();
        f.pad(&if names.is_empty() { "none".to_owned() } else { names.join(",") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_has_all_else_in_it() {
        let norms = Recompute { norms: true, ..Recompute::NOTHING };
        let swiglu = Recompute { swiglu: true, ..Recompute::NOTHING };
        let layer = Recompute { layer: true, ..Recompute::NOTHING };
        assert_eq!(norms.and(swiglu), Recompute { norms: true, swiglu: true, ..Recompute::NOTHING });
        assert_eq!(norms.and(layer), layer);
        assert_eq!(layer.within_layer(), Recompute::NOTHING);
        assert_eq!(norms.within_layer(), norms);
    }

    #[test]
    fn names_are_those_of_the_option() {
        let all = Recompute { norms: true, mla_up: true, swiglu: true, layer: true };
        assert_eq!(all.to_string(), "norms,mla-up,swiglu,layer");
        assert_eq!(Recompute::NOTHING.to_string(), "none");
    }
}
