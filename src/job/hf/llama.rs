//! Llama 2 and 3: dense, grouped-query attention.

use super::reader::Config;
use super::trunk::{Trunk, grouped, multi_head};
use crate::error::Result;
use crate::job::Model;

/// `llama`.
pub(super) fn import(config: &mut Config<'_>) -> Result<Model> {
    let trunk = Trunk::read(config)?;
    // Both keys are younger than the family: files without them are of models without biases.
    if config.optional_flag("mlp_bias")? == Some(true) {
        return Err(config.refuse(
            "mlp_bias",
            "`mlp_bias` is true, but MLPs here have no biases",
            "it cannot be imported",
        ));
    }
    let bias = config.optional_flag("attention_bias")? == Some(true);
    let mut heads = multi_head(config, &trunk, true)?;
    (heads.qkv_bias, heads.output_bias) = (bias, bias);
    let width = config.count("intermediate_size")?;
    Ok(trunk.model(grouped(heads), Some(width), None, 0))
}
