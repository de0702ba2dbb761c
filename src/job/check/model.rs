//! Rules about the model.

use super::bounds::{count, nearest, suggest};
use crate::error::{Error, Result};
use crate::job::Model;
use crate::job::model::{Attention, Layers, Mla, Moe, MultiHead};

/// Most decoder layers that a model may have.
pub const MOST_LAYERS: u32 = 10_000;
/// Largest width of anything.
const WIDEST: u64 = 1 << 20;
/// Most parameters of a layer, and of the embedding: keeps every product of a layer far below 2^63.
const MOST_LAYER_PARAMETERS: f64 = 1e13;
/// Most parameters of a model.
const MOST_PARAMETERS: f64 = 1e15;

impl Model {
    /// Checks the rules that concern the model alone.
    ///
    /// # Errors
    /// At the first that is broken, naming the field.
    pub fn check(&self) -> Result<()> {
        count("model.layers", self.layers.into(), 1, MOST_LAYERS.into())?;
        count("model.hidden", self.hidden.into(), 1, WIDEST)?;
        count("model.vocabulary", self.vocabulary.into(), 1, 1 << 24)?;
        count("model.mtp_layers", self.mtp_layers.into(), 0, 64)?;
        match &self.attention {
            Attention::Mha(heads) => {
                if heads.kv_heads.is_some() {
                    return Err(Error::new("`Mha` has as many key/value heads as heads, yet `kv_heads` is given")
                        .help("remove `kv_heads`, or write `Gqa`")
                        .field("model.attention.kv_heads"));
                }
                self.multi_head(heads)?;
            }
            Attention::Gqa(heads) => {
                let Some(kv_heads) = heads.kv_heads else {
                    return Err(Error::new("`Gqa` needs `kv_heads`")
                        .help("add `kv_heads: ..`, a divisor of `heads`; or write `Mha` if there are as many")
                        .field("model.attention.kv_heads"));
                };
                self.multi_head(heads)?;
                grouped(heads.heads, kv_heads)?;
            }
            Attention::Mla(mla) => latent(mla)?,
        }
        if let Some(moe) = &self.moe {
            experts(moe)?;
            layer_set("model.moe.layers", &moe.layers, self.layers)?;
        }
        self.dense()?;
        self.size()
    }

    fn multi_head(&self, heads: &MultiHead) -> Result<()> {
        count("model.attention.heads", heads.heads.into(), 1, 1 << 14)?;
        count("model.attention.head_dim", heads.head_dim.into(), 1, 1 << 14)?;
        if let Some(window) = &heads.window {
            count("model.attention.window.size", window.size.into(), 1, 1 << 24)?;
            layer_set("model.attention.window.layers", &window.layers, self.layers)?;
        }
        Ok(())
    }

    /// The dense MLP must be described exactly if there is one.
    fn dense(&self) -> Result<()> {
        let dense = |layer: &u32| self.moe.as_ref().is_none_or(|moe| !moe.layers.contains(*layer));
        match (self.dense_width, (0..self.layers).find(dense)) {
            (Some(width), Some(_)) => count("model.dense_width", width.into(), 1, WIDEST),
            (None, None) => Ok(()),
            (None, Some(layer)) => {
                Err(Error::new(format!("layer {layer} is dense, yet `model.dense_width` is not given"))
                    .help("add `dense_width: ..`, or make every layer MoE")
                    .field("model.dense_width"))
            }
            (Some(width), None) => Err(Error::new(format!("`model.dense_width` is {width}, yet every layer is MoE"))
                .help("remove it, or say in `moe.layers` which layers are MoE, e.g. `From(3)`")
                .field("model.dense_width")),
        }
    }

    /// Widths that are each allowed can together be absurd.
    fn size(&self) -> Result<()> {
        let hidden = f64::from(self.hidden);
        let attention = hidden
            * match &self.attention {
                Attention::Mha(heads) | Attention::Gqa(heads) => {
                    4.0 * f64::from(heads.heads) * f64::from(heads.head_dim)
                }
                Attention::Mla(mla) => {
                    let heads = f64::from(mla.heads);
                    let head = f64::from(mla.nope_dim) + f64::from(mla.rope_dim) + f64::from(mla.value_dim);
                    // Up-projections start from a rank, not from the hidden width: no more than hidden + rank each.
                    let rank = f64::from(mla.q_rank.unwrap_or(0)) + f64::from(mla.kv_rank);
                    (heads * head + rank) * 2.0 + rank * heads * head * 2.0 / hidden
                }
            };
        let dense = 3.0 * hidden * f64::from(self.dense_width.unwrap_or(0));
        let moe = self.moe.as_ref().map_or(0.0, |moe| {
            hidden * (f64::from(moe.experts) * (3.0 * f64::from(moe.width) + 1.0) + 3.0 * f64::from(moe.shared_width))
        });
        let layer = attention + dense.max(moe);
        if layer > MOST_LAYER_PARAMETERS {
            return Err(Error::new(format!("a layer would have {layer:.1e} parameters"))
                .help(format!("at most {MOST_LAYER_PARAMETERS:.0e} are allowed: check the widths and the experts"))
                .field(if moe > attention { "model.moe" } else { "model.attention" }));
        }
        let all = layer * f64::from(self.layers + self.mtp_layers) + 2.0 * hidden * f64::from(self.vocabulary);
        if all > MOST_PARAMETERS {
            return Err(Error::new(format!("the model would have {all:.1e} parameters"))
                .help(format!("at most {MOST_PARAMETERS:.0e} are allowed"))
                .field("model.layers"));
        }
        Ok(())
    }
}

fn grouped(heads: u32, kv_heads: u32) -> Result<()> {
    let field = "model.attention.kv_heads";
    count(field, kv_heads.into(), 1, heads.into())?;
    if heads.is_multiple_of(kv_heads) {
        return Ok(());
    }
    let fits = nearest(kv_heads.into(), heads.into(), |n| u64::from(heads).is_multiple_of(n));
    Err(Error::new(format!("{kv_heads} `kv_heads` do not divide {heads} `heads`"))
        .help(suggest("kv_heads", fits))
        .field(field))
}

fn latent(mla: &Mla) -> Result<()> {
    count("model.attention.heads", mla.heads.into(), 1, 1 << 14)?;
    if let Some(rank) = mla.q_rank {
        count("model.attention.q_rank", rank.into(), 1, WIDEST)?;
    }
    count("model.attention.kv_rank", mla.kv_rank.into(), 1, WIDEST)?;
    count("model.attention.nope_dim", mla.nope_dim.into(), 1, 1 << 14)?;
    count("model.attention.rope_dim", mla.rope_dim.into(), 1, 1 << 14)?;
    count("model.attention.value_dim", mla.value_dim.into(), 1, 1 << 14)
}

fn experts(moe: &Moe) -> Result<()> {
    count("model.moe.experts", moe.experts.into(), 1, 1 << 16)?;
    count("model.moe.top_k", moe.top_k.into(), 1, moe.experts.into())?;
    count("model.moe.width", moe.width.into(), 1, WIDEST)?;
    count("model.moe.shared_width", moe.shared_width.into(), 0, WIDEST)?;
    count("model.moe.groups", moe.groups.into(), 1, moe.experts.into())?;
    count("model.moe.topk_groups", moe.topk_groups.into(), 1, moe.groups.into())?;
    if !moe.experts.is_multiple_of(moe.groups) {
        let fits = nearest(moe.groups.into(), moe.experts.into(), |n| u64::from(moe.experts).is_multiple_of(n));
        return Err(Error::new(format!("{} `groups` do not divide {} `experts`", moe.groups, moe.experts))
            .help(suggest("groups", fits))
            .field("model.moe.groups"));
    }
    let reach = u64::from(moe.experts / moe.groups) * u64::from(moe.topk_groups);
    if u64::from(moe.top_k) > reach {
        return Err(Error::new(format!(
            "a token goes to {} experts, but its {} of {} groups hold only {reach}",
            moe.top_k, moe.topk_groups, moe.groups
        ))
        .help(format!("make `top_k` at most {reach}, or `topk_groups` larger"))
        .field("model.moe.top_k"));
    }
    if moe.shared_gate && moe.shared_width == 0 {
        return Err(Error::new("`shared_gate` is set, yet there is no shared expert")
            .help("give `shared_width`, or remove `shared_gate`")
            .field("model.moe.shared_gate"));
    }
    Ok(())
}

/// A set of layers must hold some, all of which exist, each once and in order.
fn layer_set(field: &str, set: &Layers, layers: u32) -> Result<()> {
    let refuse = |message: String, help: String| Err(Error::new(message).help(help).field(field));
    let exist = || format!("layers are numbered from 0 to {}", layers - 1);
    match set {
        Layers::All => Ok(()),
        Layers::From(first) if *first < layers => Ok(()),
        Layers::From(first) => refuse(format!("`{field}` starts at layer {first}, which does not exist"), exist()),
        Layers::Only(only) => {
            if only.is_empty() {
                return refuse(format!("`{field}` names no layer"), "leave out what no layer has".into());
            }
            if let Some(pair) = only.windows(2).find(|pair| pair[0] >= pair[1]) {
                return refuse(
                    format!("`{field}` names layer {} after layer {}", pair[1], pair[0]),
                    "name each layer once, in ascending order".into(),
                );
            }
            match only.iter().find(|&&layer| layer >= layers) {
                Some(layer) => refuse(format!("`{field}` names layer {layer}, which does not exist"), exist()),
                None => Ok(()),
            }
        }
    }
}
