//! Qwen 2 and 3, dense and MoE, and the language models of Qwen3-VL.

use super::reader::Config;
use super::trunk::{Trunk, grouped, layer_set, leaves_some, multi_head, sliding_layers, window};
use crate::error::Result;
use crate::job::Model;
use crate::job::model::{Layers, Moe, MultiHead};

/// `qwen2`: dense, biases on q, k and v that no key tells of.
pub(super) fn qwen2(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let heads = attention_of_2(config, &trunk)?;
    let width = config.count("intermediate_size")?;
    Ok(trunk.model(grouped(heads), Some(width), None, 0))
}

/// `qwen2_moe`: a shared expert with a width of its own and a gate.
pub(super) fn qwen2_moe(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let heads = attention_of_2(config, &trunk)?;
    // Younger than the family: files without it have no dense layer but those of `decoder_sparse_step`.
    let dense = config.optional_list("mlp_only_layers", "a list of layers")?.unwrap_or_default();
    let layers = sparse_layers(config, &trunk, &dense)?;
    let dense_width = dense_width(config, &layers)?;
    let mut moe = experts(config, layers)?;
    moe.shared_width = config.count("shared_expert_intermediate_size")?;
    moe.shared_gate = true;
    Ok(trunk.model(grouped(heads), dense_width, Some(moe), 0))
}

/// `qwen3`: dense, norms on q and k.
pub(super) fn qwen3(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let heads = attention_of_3(config, &trunk)?;
    let width = config.count("intermediate_size")?;
    Ok(trunk.model(grouped(heads), Some(width), None, 0))
}

/// `qwen3_moe`, and `qwen3_vl_moe_text`: no shared expert.
pub(super) fn qwen3_moe(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let heads = attention_of_3(config, &trunk)?;
    let Some(dense) = config.optional_list("mlp_only_layers", "a list of layers")? else {
        let message = "which layers are dense is not said (`mlp_only_layers`)";
        return Err(config.refuse("mlp_only_layers", message, "add `\"mlp_only_layers\": []` if none is"));
    };
    let layers = sparse_layers(config, &trunk, &dense)?;
    let dense_width = dense_width(config, &layers)?;
    let moe = experts(config, layers)?;
    Ok(trunk.model(grouped(heads), dense_width, Some(moe), 0))
}

fn attention_of_2(config: &mut Config<'_>, trunk: &Trunk) -> Result<MultiHead> {
    let mut heads = multi_head(config, trunk, true)?;
    heads.qkv_bias = config.optional_flag("qkv_bias")?.unwrap_or(true);
    qwen_window(config, trunk, heads)
}

fn attention_of_3(config: &mut Config<'_>, trunk: &Trunk) -> Result<MultiHead> {
    let bias = config.flag("attention_bias")?;
    let mut heads = multi_head(config, trunk, false)?;
    (heads.qkv_bias, heads.output_bias) = (bias, bias);
    heads.qk_norm = true;
    qwen_window(config, trunk, heads)
}

/// `sliding_window` is often a number that `use_sliding_window` switches off. Where it is on, only `layer_types` says for
/// which layers: the rule for files without it differs between versions of the classes.
fn qwen_window(config: &mut Config<'_>, trunk: &Trunk, mut heads: MultiHead) -> Result<MultiHead> {
    config.pass_over(&["sliding_window", "max_window_layers"]);
    let on = config.optional_flag("use_sliding_window")? == Some(true);
    match (on, sliding_layers(config, trunk)?) {
        (true, Some(layers)) => heads.window = window(config, layers)?,
        (true, None) => {
            let message = "`use_sliding_window` is true, but which layers have the window is not said";
            return Err(config.refuse("use_sliding_window", message, "add `layer_types`, one for each layer"));
        }
        (false, Some(layers)) if !layers.is_empty() => {
            let message = "`layer_types` has sliding windows, but `use_sliding_window` is not true";
            return Err(config.refuse("layer_types", message, "make them agree"));
        }
        (false, _) => {}
    }
    Ok(heads)
}

/// Layer i is MoE if (i + 1) is a multiple of `decoder_sparse_step` and i is not among `dense`.
fn sparse_layers(config: &mut Config<'_>, trunk: &Trunk, dense: &[u32]) -> Result<Layers> {
    let step = config.count("decoder_sparse_step")?;
    if let Some(layer) = dense.iter().find(|layer| **layer >= trunk.layers) {
        let message = format!("`mlp_only_layers` names layer {layer}, which does not exist");
        let help = format!("layers are numbered from 0 to {}", trunk.layers - 1);
        return Err(config.refuse("mlp_only_layers", message, help));
    }
    layer_set(config, "decoder_sparse_step", trunk.layers, |layer| {
        (layer + 1).is_multiple_of(step) && !dense.contains(&layer)
    })
}

/// `intermediate_size` means nothing where every layer is MoE.
fn dense_width(config: &mut Config<'_>, moe_layers: &Layers) -> Result<Option<u32>> {
    config.pass_over(&["intermediate_size"]);
    if leaves_some(moe_layers) { config.count("intermediate_size").map(Some) } else { Ok(None) }
}

fn experts(config: &mut Config<'_>, layers: Layers) -> Result<Moe> {
    Ok(Moe {
        experts: config.count("num_experts")?,
        top_k: config.count("num_experts_per_tok")?,
        width: config.count("moe_intermediate_size")?,
        shared_width: 0,
        shared_gate: false,
        groups: 1,
        topk_groups: 1,
        router_bias: false,
        balance_bias: false,
        expert_bias: false,
        layers,
    })
}
