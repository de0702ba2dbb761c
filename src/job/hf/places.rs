//! From the fields of a model back to the keys of a config, so that an error about a field can point to its key.

use std::ops::Range;

use super::reader::Config;

/// Field of [`crate::job::Model`], and the keys that it may have come from; the first that is there counts.
const KEYS: &[(&str, &[&str])] = &[
    ("layers", &["num_hidden_layers"]),
    ("hidden", &["hidden_size"]),
    ("vocabulary", &["vocab_size"]),
    ("tied_embedding", &["tie_word_embeddings"]),
    ("attention.heads", &["num_attention_heads"]),
    ("attention.kv_heads", &["num_key_value_heads"]),
    ("attention.head_dim", &["head_dim", "hidden_size"]),
    ("attention.window", &["sliding_window"]),
    ("attention.q_rank", &["q_lora_rank"]),
    ("attention.kv_rank", &["kv_lora_rank"]),
    ("attention.nope_dim", &["qk_nope_head_dim"]),
    ("attention.rope_dim", &["qk_rope_head_dim"]),
    ("attention.value_dim", &["v_head_dim"]),
    ("attention", &["num_attention_heads"]),
    ("dense_width", &["intermediate_size"]),
    ("moe.top_k", &["num_experts_per_tok"]),
    ("moe.width", &["moe_intermediate_size", "intermediate_size"]),
    ("moe.shared_width", &["shared_expert_intermediate_size", "n_shared_experts"]),
    ("moe.groups", &["n_group"]),
    ("moe.topk_groups", &["topk_group"]),
    ("moe.layers", &["first_k_dense_replace", "decoder_sparse_step"]),
    ("moe", &["n_routed_experts", "num_local_experts", "num_experts"]),
    ("mtp_layers", &["num_nextn_predict_layers"]),
];

/// Where in the text of a config the key of a model's `field` stands; `None` if a config does not say such a thing.
pub(in crate::job) fn find(text: &str, field: &str) -> Option<Range<usize>> {
    let mut config = Config::parse("", text).ok()?;
    let language = config.nested("text_config").unwrap_or(config);
    let belongs = |known: &str| field.strip_prefix(known).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
    let (_, keys) = KEYS.iter().find(|(known, _)| belongs(known))?;
    keys.iter().find_map(|key| language.place(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lead_to_their_keys() {
        let text = r#"{"num_experts": 8, "text_config": {"hidden_size" : 64, "num_experts": 4}}"#;
        let key = |field| find(text, field).map(|span| &text[span]);
        assert_eq!(key("hidden"), Some(r#""hidden_size" : 64"#));
        assert_eq!(key("moe.experts"), Some(r#""num_experts": 4"#));
        assert_eq!(key("moe.top_k"), None);
        assert_eq!(key("precision.products"), None);
    }
}
