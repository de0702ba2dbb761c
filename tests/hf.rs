//! Import of Hugging Face configs: published ones give the published numbers, and broken ones are refused by name.

use std::fs;
use std::path::{Path, PathBuf};

use dualweave::job::hf::{self, Imported};
use dualweave::job::model::{Attention, Layers, Window};
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    Path::new("tests/data/hf").join(format!("{name}.config.json"))
}

fn text(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn import(name: &str) -> Imported {
    let imported =
        hf::import(&path(name).display().to_string(), &text(name)).unwrap_or_else(|error| panic!("{error:?}"));
    imported.model.check().unwrap_or_else(|error| panic!("{name}: {error:?}"));
    imported
}

/// The config `name` with one change.
fn changed(name: &str, change: impl FnOnce(&mut Value)) -> String {
    let mut config: Value = serde_json::from_str(&text(name)).expect("a JSON file");
    change(&mut config);
    serde_json::to_string_pretty(&config).expect("JSON")
}

#[test]
fn shapes_that_parameters_do_not_show() {
    let v3 = import("DeepSeek-V3").model;
    let moe = v3.moe.expect("experts");
    assert_eq!((moe.groups, moe.topk_groups, moe.top_k), (8, 4, 8));
    assert_eq!((moe.layers, v3.mtp_layers, v3.dense_width), (Layers::From(3), 1, Some(18432)));
    assert_eq!(v3.name, "DeepSeek-V3");

    let lite = import("DeepSeek-V2-Lite").model;
    assert!(matches!(lite.attention, Attention::Mla(mla) if mla.q_rank.is_none()));

    let Attention::Gqa(heads) = import("gpt-oss-20b").model.attention else { panic!("gpt-oss has grouped queries") };
    let even = (0..24).step_by(2).collect();
    assert_eq!(heads.window, Some(Window { size: 128, layers: Layers::Only(even) }));

    // A window that is switched off, and widths that no layer uses.
    let qwen = import("Qwen2-57B-A14B").model;
    assert!(matches!(qwen.attention, Attention::Gqa(heads) if heads.window.is_none()));
    assert_eq!(qwen.dense_width, None);
}

#[test]
fn of_multimodal_models_the_language_model_is_taken_and_that_is_said() {
    let kimi = import("nested-Kimi-K2.5");
    assert!(matches!(kimi.model.attention, Attention::Mla(ref mla) if mla.heads == 64));
    assert_eq!(kimi.notes.len(), 1);
    assert!(kimi.notes[0].contains("kimi_k25"), "{}", kimi.notes[0]);

    // The same network as Qwen3-30B-A3B, by another name.
    let (vision, plain) = (import("nested-Qwen3-VL-30B-A3B"), import("Qwen3-30B-A3B"));
    assert_eq!(vision.model.attention, plain.model.attention);
    assert_eq!(vision.model.moe, plain.model.moe);
    assert!(plain.notes.is_empty());
}

#[test]
fn llama_4_is_refused_with_the_reason() {
    let error = hf::import("config.json", &text("nested-Llama-4-Scout")).expect_err("chunked attention");
    assert!(error.help_text().is_some_and(|help| help.contains("attention_chunk_size")), "{error:?}");
    assert!(error.has_place());
}

#[test]
fn every_key_that_shapes_the_arithmetic_must_be_there() {
    let needed: [(&str, &[&str]); 8] = [
        (
            "DeepSeek-V3",
            &[
                "attention_bias",
                "first_k_dense_replace",
                "hidden_act",
                "hidden_size",
                "intermediate_size",
                "kv_lora_rank",
                "model_type",
                "moe_intermediate_size",
                "n_group",
                "n_routed_experts",
                "n_shared_experts",
                "num_attention_heads",
                "num_experts_per_tok",
                "num_hidden_layers",
                "num_nextn_predict_layers",
                "q_lora_rank",
                "qk_nope_head_dim",
                "qk_rope_head_dim",
                "tie_word_embeddings",
                "topk_group",
                "topk_method",
                "v_head_dim",
                "vocab_size",
            ],
        ),
        (
            "Mixtral-8x7B-v0.1",
            &["intermediate_size", "num_key_value_heads", "num_local_experts", "num_experts_per_tok", "sliding_window"],
        ),
        (
            "Qwen3-30B-A3B",
            &[
                "attention_bias",
                "decoder_sparse_step",
                "head_dim",
                "mlp_only_layers",
                "moe_intermediate_size",
                "num_experts",
                "num_key_value_heads",
            ],
        ),
        ("Qwen2-57B-A14B", &["shared_expert_intermediate_size", "decoder_sparse_step"]),
        ("gpt-oss-20b", &["layer_types", "sliding_window", "attention_bias", "head_dim", "intermediate_size"]),
        ("GLM-4.5", &["use_qk_norm", "head_dim", "attention_bias", "num_nextn_predict_layers", "n_group"]),
        ("Llama-3.1-8B", &["num_key_value_heads", "intermediate_size", "tie_word_embeddings"]),
        ("nested-Kimi-K2.5", &[]),
    ];
    for (name, keys) in needed {
        for key in keys {
            let broken = changed(name, |config| {
                config.as_object_mut().expect("an object").remove(*key);
            });
            let error = hf::import("config.json", &broken).expect_err(key);
            assert!(error.message().contains(key), "{name} without {key}: {error:?}");
            assert!(error.has_place() && error.help_text().is_some(), "{name} without {key}: {error:?}");
        }
    }
}

#[test]
fn what_cannot_be_expressed_or_is_unknown_is_refused_by_name() {
    let cases: [(&str, &str, Value); 36] = [
        ("Llama-3.1-8B", "hidden_act", json!("gelu")),
        ("Llama-3.1-8B", "mlp_bias", json!(true)),
        ("Llama-3.1-8B", "mlp_bias", json!("no")),
        ("Llama-3.1-8B", "n_experts", json!(8)),
        ("Llama-3.1-8B", "num_moe_experts", json!(8)),
        ("Llama-3.1-8B", "num_local_experts", json!(8)),
        ("Llama-3.1-8B", "num_experts", json!(8)),
        ("Llama-3.1-8B", "attention_chunk_size", json!(8192)),
        ("Llama-3.1-8B", "sliding_window", json!(4096)),
        ("Llama-3.1-8B", "num_hidden_layers", json!(0)),
        ("Llama-3.1-8B", "num_hidden_layers", json!(-1)),
        ("Llama-3.1-8B", "num_hidden_layers", json!(32.5)),
        ("Llama-3.1-8B", "num_hidden_layers", json!("32")),
        ("Llama-3.1-8B", "num_hidden_layers", json!(4_000_000_000_u32)),
        ("Llama-3.1-8B", "num_hidden_layers", json!(1_000_000_000_000_000_000_u64)),
        ("Llama-3.1-8B", "num_attention_heads", json!(31)),
        ("Llama-3.1-8B", "architectures", json!(["MixtralForCausalLM"])),
        ("Llama-3.1-8B", "architectures", json!([])),
        ("Llama-3.1-8B", "model_type", json!("lama")),
        ("Llama-3.1-8B", "model_type", json!("mixtral")),
        ("Llama-3.1-8B", "model_type", json!(7)),
        ("DeepSeek-V3", "topk_method", json!("greedy")),
        ("DeepSeek-V3", "attention_bias", json!(true)),
        ("DeepSeek-V3", "num_key_value_heads", json!(8)),
        ("DeepSeek-V3", "first_k_dense_replace", json!(61)),
        ("DeepSeek-V3", "n_shared_experts", json!(4_000_000_000_u32)),
        ("DeepSeek-V3", "moe_layer_freq", json!(0)),
        ("DeepSeek-V3", "qk_head_dim", json!(128)),
        ("DeepSeek-V2-Lite", "num_nextn_predict_layers", json!(1)),
        ("Qwen3-30B-A3B", "use_sliding_window", json!(true)),
        ("Qwen3-30B-A3B", "mlp_only_layers", json!([48])),
        ("Qwen3-30B-A3B", "decoder_sparse_step", json!(49)),
        ("Qwen3-30B-A3B", "shared_expert_intermediate_size", json!(1024)),
        ("gpt-oss-20b", "experts_per_token", json!(2)),
        ("gpt-oss-20b", "layer_types", json!(["full_attention"])),
        ("gpt-oss-20b", "layer_types", json!(vec!["chunked_attention"; 24])),
    ];
    for (name, key, value) in cases {
        let broken = changed(name, |config| config[key] = value.clone());
        let error = hf::import("config.json", &broken).expect_err(&format!("{name} with {key}: {value}"));
        let named = if key == "model_type" { "model_type".into() } else { format!("`{key}`") };
        let text = error.message().replace("the model type", "model_type");
        assert!(text.contains(&named) || key == "model_type", "{name} with {key}: {value}: {error:?}");
        assert!(error.has_place() && error.help_text().is_some(), "{name} with {key}: {value}: {error:?}");
    }
}

#[test]
fn keys_that_do_not_matter_are_passed_over() {
    let ordinary = import("Llama-3.1-8B").model;
    for (key, value) in [
        ("bos_token_id", json!(128_000)),
        ("initializer_range", json!(0.02)),
        ("attention_dropout", json!(0.0)),
        ("quantization_config", json!({"quant_method": "fp8"})),
        ("dtype", json!("float8")),
        ("num_experts", json!(null)),
        ("sliding_window", json!(null)),
        ("architectures", json!(null)),
        ("head_dim", json!(128)),
        ("rope_parameters", json!({"rope_type": "llama3"})),
    ] {
        let config = changed("Llama-3.1-8B", |config| config[key] = value.clone());
        let imported = hf::import(&path("Llama-3.1-8B").display().to_string(), &config);
        assert_eq!(imported.unwrap_or_else(|error| panic!("{key}: {error:?}")).model, ordinary, "{key}");
    }
}

#[test]
fn windows_are_read_where_they_can_be() {
    let window = |text: &str| match hf::import("config.json", text).unwrap_or_else(|e| panic!("{e:?}")).model.attention
    {
        Attention::Gqa(heads) => heads.window,
        other => panic!("{other:?}"),
    };
    let mixtral = changed("Mixtral-8x7B-v0.1", |config| config["sliding_window"] = json!(4096));
    assert_eq!(window(&mixtral), Some(Window { size: 4096, layers: Layers::All }));
    let qwen = changed("Qwen2.5-7B-Instruct", |config| {
        config["use_sliding_window"] = json!(true);
        let mut kinds = vec!["full_attention"; 28];
        kinds[27] = "sliding_attention";
        config["layer_types"] = json!(kinds);
    });
    assert_eq!(window(&qwen), Some(Window { size: 131_072, layers: Layers::Only(vec![27]) }));
}

#[test]
fn sparse_layers_follow_each_familys_rule() {
    let layers = |text: &str| {
        let model = hf::import("config.json", text).unwrap_or_else(|error| panic!("{error:?}")).model;
        (model.moe.expect("experts").layers, model.dense_width)
    };
    let qwen = changed("Qwen3-30B-A3B", |config| {
        config["num_hidden_layers"] = json!(8);
        config["decoder_sparse_step"] = json!(2);
        config["mlp_only_layers"] = json!([3]);
    });
    assert_eq!(layers(&qwen), (Layers::Only(vec![1, 5, 7]), Some(6144)));
    let v3 = changed("DeepSeek-V3", |config| {
        config["num_hidden_layers"] = json!(8);
        config["moe_layer_freq"] = json!(2);
    });
    assert_eq!(layers(&v3), (Layers::Only(vec![4, 6]), Some(18432)));
}

#[test]
fn text_that_is_no_config_is_refused_at_its_place() {
    for text in [
        "",
        "[]",
        "{",
        "{\"model_type\": }",
        "{\"a\": 1}",
        "nul",
        "{\"model_type\": \"llama\", \"model_type\": \"llama\"}",
        "{\"é\": \"\u{7}\"}",
        "{}\n{}",
    ] {
        let error = hf::import("config.json", text).expect_err(text);
        assert!(error.has_place(), "{text}: {error:?}");
    }
}
