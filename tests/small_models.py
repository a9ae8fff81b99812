"""Small random models: one of each architecture of the course, for tests that damage or serve its files, and a config
of every type of model that transformers has."""

import json
from pathlib import Path

import torch

SMALL = {
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "transformer": {
        "model_type": "gpt_neox",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
    },
    "olmoe": {
        "model_type": "olmoe",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 16,
        "num_experts": 8,
        "num_experts_per_tok": 2,
    },
    "deepseek-moe": {
        "model_type": "deepseek",
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "n_routed_experts": 8,
        "n_shared_experts": 1,
        "num_experts_per_tok": 3,
    },
    "jamba": {
        "model_type": "jamba",
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "attn_layer_period": 4,
        "attn_layer_offset": 2,
        "num_experts": 4,
        "mamba_d_state": 8,
        "mamba_dt_rank": 4,
    },
}
# An architecture of which no tiny model ships.
MIXTRAL = {
    "model_type": "mixtral",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


def write(folder: Path, kind: str, **options) -> None:
    """Write the small model `kind` into `folder` as save_pretrained does; `options` are passed to it."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from shared.models import deepseek

    deepseek.register()
    folder.mkdir(parents=True, exist_ok=True)
    # As in the published configs, what is not said has the class's default.
    config = {**(MIXTRAL if kind == "mixtral" else SMALL[kind]), "vocab_size": 1024, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.save_pretrained(folder, **options)


# What makes a config of any type small: by the name of a field, whatever the type.
NARROW = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "dim"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"), 64),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 4),
    **dict.fromkeys(("decoder_layers", "encoder_layers", "num_key_value_heads"), 2),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "num_expert_group", "topk_group"), 1),
    **dict.fromkeys(
        ("sliding_window", "sliding_window_size", "attention_chunk_size", "chunk_size", "mamba_chunk_size", "head_dim"),
        16,
    ),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions"), 512),
    "qk_rope_head_dim": 8,
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 128),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Fields with an entry a layer, or made from others: the config's class makes them anew.
DERIVED = (
    *("layer_types", "mlp_layer_types", "layers_block_type", "kv_sharing_modes", "attention_layers"),
    *("per_layer_config", "num_attention_heads_per_layer", "no_rope_layers", "activation_sparsity_pattern"),
    *("indexer_types", "qk_head_dim", "transformers_version", "architectures", "model_type"),
)
ALTERNATING = ["linear_attention", "full_attention"] * 2
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8}
GATED_DELTANET = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8}
INDEXER |= {"indexer_compress_ratio": 4}
KIMI_DELTA = {"layer_types": ALTERNATING, "linear_num_heads": 4, "linear_head_dim": 16}
ROPE = {"rope_type": "default", "rope_theta": 10_000.0}
TWICE_AS_WIDE = {"attention_hidden_size": 128, "attention_head_dim": 32, "n_mamba_heads": 8}
# What else a type needs, because its fields have to fit each other.
OWN = {
    "bailing_hybrid": KIMI_DELTA,
    "bamba": MAMBA2 | {"attn_layer_indices": [2]},
    "big_bird": {"attention_type": "original_full", "pad_token_id": None},
    "codegen": {"rotary_dim": 16},
    "cohere_compass_text": {"rope_parameters": dict.fromkeys(("full_attention", "sliding_attention"), ROPE)},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "ernie4_5_moe": {"moe_k": 2},
    "falcon_h1": MAMBA2 | {"mamba_d_ssm": 128},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "window_size": 16},
    "gptj": {"rotary_dim": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "granitemoehybrid": MAMBA2 | {"layer_types": ALTERNATING},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2, "mamba_dt_rank": 4},
    "kimi_linear": KIMI_DELTA,
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 8},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2},
    "olmo_hybrid": GATED_DELTANET,
    "qwen3_5": GATED_DELTANET,
    "qwen3_5_moe": GATED_DELTANET,
    "qwen3_5_moe_text": GATED_DELTANET,
    "qwen3_5_text": GATED_DELTANET,
    "qwen3_next": GATED_DELTANET,
    "qwen4_exp": GATED_DELTANET | INDEXER,
    "qwen4_exp_text": GATED_DELTANET | INDEXER,
    "reformer": {"axial_pos_embds_dim": [32, 32], "attn_layers": ["local", "local"], "axial_pos_shape": [16, 32]},
    "roformer": {"pad_token_id": None},
    "rwkv": {"attention_hidden_size": 64},
    "xlnet": {"d_head": 16, "d_inner": 64},
    "zamba": TWICE_AS_WIDE | {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
    "zamba2": MAMBA2
    | TWICE_AS_WIDE
    | {"layer_types": ["linear_attention", "hybrid"] * 2, "hybrid_layer_ids": [1, 3], "num_mem_blocks": 1}
    | {"mamba_headdim": 16, "mamba_ngroups": 1, "adapter_rank": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def shrunk(model_type: str):
    """The class's default config of a type, made small. Raises as the class does where that fits no small model."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[model_type]
    config = kind(**_narrow(kind().to_dict(), OWN.get(model_type, {})))
    config.use_cache = True
    if hasattr(config, "is_decoder"):
        config.is_decoder = True
    return config


def _narrow(fields: dict, own: dict) -> dict:
    inner = {key: value for key, value in fields.items() if isinstance(value, dict) and key.endswith("config")}
    inner = {key: _narrow(value, own) for key, value in inner.items() if key not in DERIVED}
    kept = {key: value for key, value in fields.items() if key not in inner and key not in DERIVED}
    small = {
        key: size for key, size in NARROW.items() if kept.get(key) is not None or (key in kept and key == "head_dim")
    }
    narrow = kept | small | inner
    if narrow.get("kv_lora_rank"):  # MLA: every head has its own keys once they are unpacked
        narrow["num_key_value_heads"] = NARROW["num_attention_heads"]
        narrow.pop("head_dim", None)
    elsewhere = {key for value in inner.values() for key in value}
    return narrow | {key: value for key, value in own.items() if key in narrow or key not in elsewhere}
