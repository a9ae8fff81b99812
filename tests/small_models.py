"""One small random model of each architecture of the course, for tests that damage or serve its files."""

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

    import shared.models.deepseek  # noqa: F401  registers model_type "deepseek"

    folder.mkdir(parents=True, exist_ok=True)
    # As in the published configs, what is not said has the class's default.
    config = {**(MIXTRAL if kind == "mixtral" else SMALL[kind]), "vocab_size": 1024, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    model.save_pretrained(folder, **options)
