//! What all families have in common: the trunk, the activation, ordinary attention, and which layers are which.

use super::reader::Config;
use crate::error::Result;
use crate::job::MOST_LAYERS;
use crate::job::model::{Attention, Layers, Model, Moe, MultiHead, Precision, Window};

/// The keys that every family has under the same name.
pub(super) struct Trunk {
    pub layers: u32,
    pub hidden: u32,
    vocabulary: u32,
    tied_embedding: bool,
}

impl Trunk {
    /// Reads them, and refuses an activation that is not SwiGLU's.
    pub fn read(config: &mut Config<'_>) -> Result<Self> {
        let layers = config.count("num_hidden_layers")?;
        if layers > MOST_LAYERS {
            let message = format!("`num_hidden_layers` is {layers}");
            return Err(config.refuse("num_hidden_layers", message, format!("at most {MOST_LAYERS} are allowed")));
        }
        let activation = config.text("hidden_act")?;
        if activation != "silu" {
            let message = format!("`hidden_act` is `{activation}`, but MLPs here are SwiGLU");
            return Err(config.refuse("hidden_act", message, "only `silu` can be imported"));
        }
        Ok(Self {
            layers,
            hidden: config.count("hidden_size")?,
            vocabulary: config.count("vocab_size")?,
            tied_embedding: config.tied_embedding()?,
        })
    }

    /// The model with this trunk. Its name is set by the caller of the importer.
    pub fn model(self, attention: Attention, dense_width: Option<u32>, moe: Option<Moe>, mtp_layers: u32) -> Model {
        Model {
            name: String::new(),
            layers: self.layers,
            hidden: self.hidden,
            vocabulary: self.vocabulary,
            tied_embedding: self.tied_embedding,
            attention,
            dense_width,
            moe,
            mtp_layers,
            precision: Precision::default(),
        }
    }
}

/// Reads heads and their width into a [`MultiHead`] without biases, norms or window. `head_dim` may be left out, and is then
/// hidden / heads, only where `quotient` says that this family's class does so.
pub(super) fn multi_head(config: &mut Config<'_>, trunk: &Trunk, quotient: bool) -> Result<MultiHead> {
    let heads = config.count("num_attention_heads")?;
    let head_dim = match (if quotient { config.optional_count("head_dim")? } else { None }, quotient) {
        (Some(width), _) => width,
        (None, false) => config.count("head_dim")?,
        (None, true) if trunk.hidden.is_multiple_of(heads) => trunk.hidden / heads,
        (None, true) => {
            let message =
                format!("{heads} heads do not divide the hidden size {}, and no `head_dim` is given", trunk.hidden);
            return Err(config.refuse("num_attention_heads", message, "add `head_dim` as the model was published"));
        }
    };
    Ok(MultiHead {
        heads,
        kv_heads: Some(config.count("num_key_value_heads")?),
        head_dim,
        qkv_bias: false,
        output_bias: false,
        qk_norm: false,
        sinks: false,
        window: None,
    })
}

/// Grouped-query attention, or multi-head where every head has its own keys and values.
pub(super) fn grouped(mut heads: MultiHead) -> Attention {
    if heads.kv_heads == Some(heads.heads) {
        heads.kv_heads = None;
        Attention::Mha(heads)
    } else {
        Attention::Gqa(heads)
    }
}

/// The layers for which `layer_types` says `sliding_attention`; the key must agree with the number of layers and know no other
/// kind than that and `full_attention`. `None` without the key.
pub(super) fn sliding_layers(config: &mut Config<'_>, trunk: &Trunk) -> Result<Option<Vec<u32>>> {
    let key = "layer_types";
    let Some(kinds) = config.optional_list::<String>(key, "a list of attention kinds")? else {
        return Ok(None);
    };
    if kinds.len() != trunk.layers as usize {
        let message = format!("`{key}` has {} entries, but the model has {} layers", kinds.len(), trunk.layers);
        return Err(config.refuse(key, message, "give one for each layer"));
    }
    if let Some(kind) = kinds.iter().find(|kind| !matches!(kind.as_str(), "full_attention" | "sliding_attention")) {
        let message = format!("`{key}` has the attention kind `{kind}`");
        return Err(config.refuse(key, message, "only `full_attention` and `sliding_attention` can be imported"));
    }
    Ok(Some(
        (0..trunk.layers).zip(kinds).filter(|(_, kind)| kind == "sliding_attention").map(|(layer, _)| layer).collect(),
    ))
}

/// A window of `sliding_window` tokens on `layers`; `None` if there are none.
pub(super) fn window(config: &mut Config<'_>, layers: Vec<u32>) -> Result<Option<Window>> {
    if layers.is_empty() {
        return Ok(None);
    }
    Ok(Some(Window { size: config.count("sliding_window")?, layers: Layers::Only(layers) }))
}

/// The set of MoE layers in its simplest form. `key` is blamed if there are none.
pub(super) fn layer_set(config: &Config<'_>, key: &str, layers: u32, is_moe: impl Fn(u32) -> bool) -> Result<Layers> {
    let only: Vec<u32> = (0..layers).filter(|&layer| is_moe(layer)).collect();
    match only.first() {
        None => Err(config.refuse(key, "the model has experts, but no layer uses them", format!("check `{key}`"))),
        Some(0) if only.len() == layers as usize => Ok(Layers::All),
        Some(&first) if only.len() == (layers - first) as usize => Ok(Layers::From(first)),
        Some(_) => Ok(Layers::Only(only)),
    }
}

/// Whether a list of layers, such as [`layer_set`] gave, leaves any out.
pub(super) fn leaves_some(set: &Layers) -> bool {
    *set != Layers::All
}
