//! Mixtral: grouped-query attention, experts in every layer, no shared one.

use super::reader::Config;
use super::trunk::{Trunk, grouped, multi_head};
use crate::error::Result;
use crate::job::Model;
use crate::job::model::{Layers, Moe, Window};

/// `mixtral`.
pub(super) fn import(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    let mut heads = multi_head(config, &trunk, true)?;
    // A number applies to every layer.
    heads.window = config.count_or_null("sliding_window")?.map(|size| Window { size, layers: Layers::All });
    let moe = Moe {
        experts: config.count("num_local_experts")?,
        top_k: config.count("num_experts_per_tok")?,
        // There is no `moe_intermediate_size`: this is the expert's.
        width: config.count("intermediate_size")?,
        shared_width: 0,
        shared_gate: false,
        groups: 1,
        topk_groups: 1,
        router_bias: false,
        balance_bias: false,
        expert_bias: false,
        layers: Layers::All,
    };
    Ok(trunk.model(grouped(heads), None, Some(moe), 0))
}
