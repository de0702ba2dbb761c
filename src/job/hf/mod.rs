//! Import of a Hugging Face `config.json`.
//!
//! Strict, because a wrong number here is a wrong plan: what shapes the arithmetic must be in the file (the defaults of the
//! Python classes differ between versions), a value that changes it in a way that [`Model`] cannot express is refused by
//! name, and so is a key that nobody asked for and that sounds like it matters. Passed over: token ids, dtypes,
//! initialisers, dropout, position scaling, and `quantization_config`, which describes the stored checkpoint and not the
//! training. Each family of models has a file here; `reader` gives them typed access.

mod deepseek;
mod gpt_oss;
mod llama;
mod mixtral;
mod places;
mod qwen;
mod reader;
mod trunk;

use std::path::Path;

use super::Model;
use crate::error::{Error, Result};

pub(super) use places::find;
use reader::Config;

/// A model from a config, with what should be said about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The model. Its precision is the default: a config says nothing of training.
    pub model: Model,
    /// What was left out or assumed: one sentence each.
    pub notes: Vec<String>,
    /// Whether the default precision is the one in which this family was trained.
    pub precision_fits: bool,
}

/// How to import one `model_type`.
struct Family {
    /// `model_type`.
    model_type: &'static str,
    /// The class that `architectures` must name, where it is given.
    class: &'static str,
    /// Reads the keys.
    import: fn(&mut Config<'_>) -> Result<Model>,
}

const FAMILIES: [Family; 13] = [
    Family { model_type: "deepseek_v2", class: "DeepseekV2ForCausalLM", import: deepseek::v2 },
    Family { model_type: "deepseek_v3", class: "DeepseekV3ForCausalLM", import: deepseek::v3 },
    Family { model_type: "glm4_moe", class: "Glm4MoeForCausalLM", import: deepseek::glm4_moe },
    Family { model_type: "gpt_oss", class: "GptOssForCausalLM", import: gpt_oss::import },
    // Kimi-K2 is DeepSeek-V3 with other numbers and says so in its class.
    Family { model_type: "kimi_k2", class: "DeepseekV3ForCausalLM", import: deepseek::v3 },
    Family { model_type: "llama", class: "LlamaForCausalLM", import: llama::import },
    Family { model_type: "mixtral", class: "MixtralForCausalLM", import: mixtral::import },
    Family { model_type: "qwen2", class: "Qwen2ForCausalLM", import: qwen::qwen2 },
    Family { model_type: "qwen2_moe", class: "Qwen2MoeForCausalLM", import: qwen::qwen2_moe },
    Family { model_type: "qwen3", class: "Qwen3ForCausalLM", import: qwen::qwen3 },
    Family { model_type: "qwen3_moe", class: "Qwen3MoeForCausalLM", import: qwen::qwen3_moe },
    // Language model of Qwen3-VL, on its own or within the whole.
    Family { model_type: "qwen3_vl_moe_text", class: "Qwen3VLMoeTextModel", import: qwen::qwen3_moe },
    Family { model_type: "qwen3_vl_text", class: "Qwen3VLTextModel", import: qwen::qwen3 },
];

/// Models of several modalities: `model_type`, class, and the `model_type` that their `text_config` must have.
const MULTIMODAL: [(&str, &str, &str); 3] = [
    ("kimi_k25", "KimiK25ForConditionalGeneration", "kimi_k2"),
    ("qwen3_vl", "Qwen3VLForConditionalGeneration", "qwen3_vl_text"),
    ("qwen3_vl_moe", "Qwen3VLMoeForConditionalGeneration", "qwen3_vl_moe_text"),
];

/// Models that are known and yet cannot be described, and why.
const REFUSED: [(&str, &str); 2] = [("llama4", LLAMA4), ("llama4_text", LLAMA4)];
const LLAMA4: &str = "it attends within fixed chunks of `attention_chunk_size` tokens in three layers of four, and a model \
                      here has only full and sliding-window attention: its cost would come out wrong";

/// Imports a config. `file` is the path of the file, for messages and for the model's name; `text` is all of it.
///
/// # Errors
/// If the text is no JSON object, the model is not supported, or a key is missing, misshaped or unknown; the error points to
/// the key.
pub fn import(file: &str, text: &str) -> Result<Imported> {
    let mut config = Config::parse(file, text)?;
    let model_type = config.text("model_type")?;
    if let Some((_, reason)) = REFUSED.iter().find(|(known, _)| *known == model_type) {
        return Err(config.refuse(
            "model_type",
            format!("`model_type` is `{model_type}`, which cannot be imported"),
            *reason,
        ));
    }
    let mut notes = Vec::new();
    let mut language = if config.has("text_config") {
        let Some((_, class, inner)) = MULTIMODAL.iter().find(|(known, ..)| *known == model_type) else {
            return Err(unknown(&config, &model_type));
        };
        config.class_is(class)?;
        let mut language = config.nested("text_config")?;
        let found = language.text("model_type")?;
        if found != *inner {
            let message = format!("the language model of `{model_type}` is `{found}`, not `{inner}`");
            return Err(language.refuse("model_type", message, "only the published combination is known"));
        }
        notes.push(format!("only the language model of `{model_type}` is imported (`text_config`), nothing that sees"));
        language
    } else {
        config
    };
    let model_type = language.text("model_type")?;
    let Some(family) = FAMILIES.iter().find(|family| family.model_type == model_type) else {
        return Err(unknown(&language, &model_type));
    };
    language.class_is(family.class)?;
    let mut model = (family.import)(&mut language)?;
    language.refuse_unread()?;
    model.name = name(Path::new(file)).unwrap_or(model_type);
    // The default precision is the one that DeepSeek-V3 was trained in.
    Ok(Imported { model, notes, precision_fits: family.model_type == "deepseek_v3" })
}

/// An unknown `model_type`.
fn unknown(config: &Config<'_>, model_type: &str) -> Error {
    let mut known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    known.extend(MULTIMODAL.iter().map(|(known, ..)| known));
    let help = match super::source::nearest_name(model_type, &known) {
        Some(name) => format!("did you mean `{name}`? Known are {}", known.join(", ")),
        None => format!("known are {}; or write the model out in RON", known.join(", ")),
    };
    config.refuse("model_type", format!("`model_type` is `{model_type}`, which is not known"), help)
}

/// A name for the model: that of the file, or of its folder if the file is just `config.json`.
fn name(file: &Path) -> Option<String> {
    let stem = file.file_stem()?.to_str()?;
    let stem = stem.strip_suffix(".config").unwrap_or(stem);
    if stem != "config" {
        return Some(stem.to_owned());
    }
    Some(file.parent()?.file_name()?.to_str()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_after_its_file_or_folder() {
        let named = |file| name(Path::new(file));
        assert_eq!(named("a/DeepSeek-V3.config.json").as_deref(), Some("DeepSeek-V3"));
        assert_eq!(named("a/Qwen3-0.6B.json").as_deref(), Some("Qwen3-0.6B"));
        assert_eq!(named("models/deepseek-v3/config.json").as_deref(), Some("deepseek-v3"));
        assert_eq!(named("config.json"), None);
    }

    #[test]
    fn families_are_in_order_and_once() {
        assert!(FAMILIES.is_sorted_by(|a, b| a.model_type < b.model_type));
        assert!(MULTIMODAL.is_sorted_by(|a, b| a.0 < b.0));
    }
}
