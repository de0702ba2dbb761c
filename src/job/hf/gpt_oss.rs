//! gpt-oss: biases everywhere, attention sinks, a window on every other layer.

use super::reader::Config;
use super::trunk::{Trunk, grouped, multi_head, sliding_layers, window};
use crate::error::Result;
use crate::job::Model;
use crate::job::model::{Layers, Moe};

/// `gpt_oss`.
pub(super) fn import(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let bias = config.flag("attention_bias")?;
    let mut heads = multi_head(config, &trunk, false)?;
    (heads.qkv_bias, heads.output_bias) = (bias, bias);
    heads.sinks = true;
    let Some(sliding) = sliding_layers(config, &trunk)? else {
        let message = "which layers have the window is not said (`layer_types`)";
        return Err(config.refuse("layer_types", message, "add `layer_types` as the model was published"));
    };
    heads.window = window(config, sliding)?;
    config.pass_over(&["sliding_window"]);
    let top_k = config.count("num_experts_per_tok")?;
    // An older name of the same number.
    if let Some(old) = config.optional_count("experts_per_token")?.filter(|old| *old != top_k) {
        let message = format!("`experts_per_token` is {old}, but `num_experts_per_tok` is {top_k}");
        return Err(config.refuse("experts_per_token", message, "they are the same number: make them agree"));
    }
    let moe = Moe {
        experts: config.count("num_local_experts")?,
        top_k,
        width: config.count("intermediate_size")?,
        shared_width: 0,
        shared_gate: false,
        groups: 1,
        topk_groups: 1,
        router_bias: true,
        balance_bias: false,
        expert_bias: true,
        layers: Layers::All,
    };
    Ok(trunk.model(grouped(heads), None, Some(moe), 0))
}
