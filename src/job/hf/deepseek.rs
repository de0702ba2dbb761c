//! DeepSeek V2 and V3, Kimi-K2 (which is V3 with other numbers), and GLM-4.5 (V3's experts with grouped-query attention).

use super::reader::Config;
use super::trunk::{Trunk, grouped, layer_set, leaves_some, multi_head};
use crate::error::Result;
use crate::job::Model;
use crate::job::model::{Attention, Layers, Mla, Moe};

/// `deepseek_v2`: no balancing bias, no MTP.
pub(super) fn v2(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let attention = latent(config)?;
    let mut moe = experts(config, &trunk)?;
    match config.text("topk_method")?.as_str() {
        "group_limited_greedy" => {}
        // Groups are in the file, but not used.
        "greedy" => (moe.groups, moe.topk_groups) = (1, 1),
        other => return Err(unknown_routing(config, other, "`greedy` and `group_limited_greedy`")),
    }
    let dense_width = dense_width(config, &moe.layers)?;
    Ok(trunk.model(attention, dense_width, Some(moe), 0))
}

/// `deepseek_v3` and `kimi_k2`: a balancing bias per expert, and MTP.
pub(super) fn v3(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let attention = latent(config)?;
    let mut moe = experts(config, &trunk)?;
    match config.text("topk_method")?.as_str() {
        "noaux_tc" => moe.balance_bias = true,
        other => return Err(unknown_routing(config, other, "`noaux_tc`")),
    }
    let dense_width = dense_width(config, &moe.layers)?;
    let mtp_layers = config.number("num_nextn_predict_layers")?;
    Ok(trunk.model(attention, dense_width, Some(moe), mtp_layers))
}

/// `glm4_moe`: routing is V3's without a key that says so; `attention_bias` means q, k and v only.
pub(super) fn glm4_moe(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let mut heads = multi_head(config, &trunk, false)?;
    heads.qkv_bias = config.flag("attention_bias")?;
    heads.qk_norm = config.flag("use_qk_norm")?;
    let mut moe = experts(config, &trunk)?;
    moe.balance_bias = true;
    let dense_width = dense_width(config, &moe.layers)?;
    let mtp_layers = config.number("num_nextn_predict_layers")?;
    Ok(trunk.model(grouped(heads), dense_width, Some(moe), mtp_layers))
}

/// Multi-head latent attention. `num_key_value_heads` equals the heads and means nothing here.
fn latent(config: &mut Config<'_>) -> Result<Attention> {
    if config.flag("attention_bias")? {
        let message = "`attention_bias` is true, but latent attention here has no biases";
        return Err(config.refuse("attention_bias", message, "it cannot be imported"));
    }
    let mla = Mla {
        heads: config.count("num_attention_heads")?,
        q_rank: config.count_or_null("q_lora_rank")?,
        kv_rank: config.count("kv_lora_rank")?,
        nope_dim: config.count("qk_nope_head_dim")?,
        rope_dim: config.count("qk_rope_head_dim")?,
        value_dim: config.count("v_head_dim")?,
    };
    if let Some(kv_heads) = config.optional_count("num_key_value_heads")?.filter(|kv| *kv != mla.heads) {
        let message =
            format!("`num_key_value_heads` is {kv_heads}, but latent attention has one per head, {}", mla.heads);
        return Err(config.refuse("num_key_value_heads", message, "make it equal to `num_attention_heads`"));
    }
    // Newer files repeat the sum of two of the widths, and as `head_dim` one of them.
    let sum = u64::from(mla.nope_dim) + u64::from(mla.rope_dim);
    if let Some(width) = config.optional_count("qk_head_dim")?.filter(|width| u64::from(*width) != sum) {
        let message = format!("`qk_head_dim` is {width}, but `qk_nope_head_dim` + `qk_rope_head_dim` is {sum}");
        return Err(config.refuse("qk_head_dim", message, "make them agree"));
    }
    config.pass_over(&["head_dim"]);
    Ok(Attention::Mla(mla))
}

/// Routed and shared experts. Layer i is MoE if i ≥ `first_k_dense_replace` and i is a multiple of `moe_layer_freq` (1 where
/// the file leaves it out, as files of newer classes do).
fn experts(config: &mut Config<'_>, trunk: &Trunk) -> Result<Moe> {
    let width = config.count("moe_intermediate_size")?;
    let shared = config.number_or_null("n_shared_experts")?;
    let Some(shared_width) = width.checked_mul(shared) else {
        let message = format!("{shared} shared experts of width {width} are too wide");
        return Err(config.refuse("n_shared_experts", message, "check both numbers"));
    };
    let first = config.number("first_k_dense_replace")?;
    let every = config.optional_count("moe_layer_freq")?.unwrap_or(1);
    let is_moe = |layer: u32| layer >= first && layer.is_multiple_of(every);
    Ok(Moe {
        experts: config.count("n_routed_experts")?,
        top_k: config.count("num_experts_per_tok")?,
        width,
        shared_width,
        shared_gate: false,
        groups: config.count("n_group")?,
        topk_groups: config.count("topk_group")?,
        router_bias: false,
        balance_bias: false,
        expert_bias: false,
        layers: layer_set(config, "first_k_dense_replace", trunk.layers, is_moe)?,
    })
}

fn dense_width(config: &mut Config<'_>, moe_layers: &Layers) -> Result<Option<u32>> {
    config.pass_over(&["intermediate_size"]);
    if leaves_some(moe_layers) { config.count("intermediate_size").map(Some) } else { Ok(None) }
}

fn unknown_routing(config: &Config<'_>, found: &str, known: &str) -> crate::Error {
    config.refuse("topk_method", format!("`topk_method` is `{found}`"), format!("this family knows {known}"))
}
