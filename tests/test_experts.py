"""What `experts.capture` says is what the model dispatches: on every MoE architecture of transformers, by ablation."""

import functools
import gc
import statistics
import time
import weakref

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import shared.deepseek  # noqa: F401  registers model_type "deepseek"
from shared import experts
from shared.errors import BadInput, CourseError
from shared.sizes import TINY
from tests.small_models import MIXTRAL, SMALL

# ---- every architecture of the registry, tiny ------------------------------------------------------------------------

# The fields that make a config small, where it has them. One that a new architecture adds is worth a line here.
FIELDS = {
    **dict.fromkeys(("hidden_size", "d_model"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_heads", "num_key_value_heads"), 4),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "mamba_n_heads"), 8),
    **dict.fromkeys(("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "router_hidden_size"), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 8),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts", "decoder_sparse_step"), 1),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "max_position_embeddings", "max_seq_len"), 64),
    # Experts in both layers, also where the published model starts dense or has them as an option.
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 0),
    **dict.fromkeys(("is_moe", "enable_moe_block"), True),
    "mlp_layer_types": ["sparse", "sparse"],
    "mlp_only_layers": [],
    "zero_expert_num": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OF_ONE = {
    "dbrx": {
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 8, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "zaya": {"num_experts_per_tok": 1},
}
WITHOUT_INTERFACE = ("doge", "jetmoe", "llama4_text")


def fields(config_class) -> set[str]:
    return {name for kind in config_class.__mro__ for name in getattr(kind, "__annotations__", ())}


def registry() -> dict[str, tuple]:
    """model_type -> model class and config class, of every causal language model with a config field for experts."""
    found = {}
    for model_type, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items():
        config = CONFIG_MAPPING[model_type]
        parts = (config, *getattr(config, "sub_configs", {}).values())
        # A multimodal config has its language model's class, or a class that is no causal language model alone.
        if name.endswith("ForCausalLM") and any("experts" in field for part in parts for field in fields(part)):
            model = AutoModelForCausalLM._model_mapping[config]
            found[model.config_class.model_type] = model, model.config_class
    return found


REGISTRY = registry()
PADDED = torch.tensor([[0, 0, 7, 9, 23, 41, 5, 60], [11, 50, 31, 8, 19, 44, 62, 33]])
MASK = (PADDED != 0).long()


def randomised(model):
    """The same model with every weight and every router's bias drawn: transformers starts some routers at zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():  # norms stay near one and biases near zero
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.copy_(0.5 * noise if parameter.ndim > 1 else parameter + 0.05 * noise)
        for bias in (b for name, b in model.named_buffers() if "bias" in name):
            bias.normal_(0, 0.05, generator=generator)
        # DeepSeek-V4's first layers look the experts of a token up in a table, which starts as zeros.
        for table in (b for name, b in model.named_buffers() if name.endswith("tid2eid")):
            table.copy_(torch.rand(len(table), 8, generator=generator).argsort(-1)[:, : table.shape[1]])
    return model.eval()


def build(model_type: str):
    model, config = REGISTRY[model_type]
    small = {name: value for name, value in FIELDS.items() if name in fields(config)} | OF_ONE.get(model_type, {})
    return randomised(model(config(**small)))


def mixture(kind="olmoe", **options):
    config = {**(MIXTRAL if kind == "mixtral" else SMALL[kind]), "vocab_size": 64, "pad_token_id": 0, **options}
    return randomised(AutoModelForCausalLM.from_config(CONFIG_MAPPING[config.pop("model_type")](**config)))


# ---- the oracle ------------------------------------------------------------------------------------------------------


def block_calls(model, blocks: dict, **call) -> dict[int, tuple]:
    """Layer -> what the block around its experts is given in one forward: positional and named arguments."""
    given, handles = {}, []
    for layer, block in blocks.items():

        def keep(module, args, kwargs, layer=layer):
            given[layer] = tuple(a.clone() if torch.is_tensor(a) else a for a in args), kwargs

        handles.append(block.register_forward_pre_hook(keep, with_kwargs=True))
    model(**call)
    for handle in handles:
        handle.remove()
    return given


def rows(block, args, kwargs) -> torch.Tensor:
    """Output rows (B * T, d_model) of a block."""
    output = block(*(a.clone() if torch.is_tensor(a) else a for a in args), **kwargs)
    return (output[0] if isinstance(output, tuple) else output).flatten(0, -2).clone()


@torch.no_grad()
def ablation_oracle(model, **call) -> int:
    """Zero each expert of each layer: exactly the rows captured for it change. Returns how many were zeroed."""
    with experts.capture(model) as trace:
        model(**call)
    watched = experts.experts_modules(model)
    names = {module: name for name, module in model.named_modules()}
    blocks = {layer: model.get_submodule(names[m].rpartition(".")[0]) for layer, m in watched.items()}
    given = block_calls(model, blocks, **call)
    assert set(trace.indices) == set(watched) == set(given), "a layer with experts was not seen"
    real, zeroed = trace.tokens.flatten() >= 0, 0
    for layer, module in watched.items():
        whole = rows(blocks[layer], *given[layer])
        E = len(trace.counts[layer])
        # The identity experts of LongCat have no weights that could be zeroed.
        for expert in range(getattr(module, "num_routed_experts", E)):
            # Its first matrix is enough. (E, ...), or DBRX's (E * d, ...)
            matrix = next(module.parameters()).unflatten(0, (E, -1))[expert]
            kept = matrix.clone()
            matrix.zero_()
            changed = (rows(blocks[layer], *given[layer]) != whole).any(-1)
            matrix.copy_(kept)
            routed = (trace.indices[layer] == expert).any(-1).flatten()
            assert torch.equal(changed[real], routed[real]), f"layer {layer}, expert {expert}"
            zeroed += 1
        assert (trace.counts[layer] > 0).sum() > 1, "with one expert for all tokens the oracle proves nothing"
    return zeroed


@functools.cache
def verdict(model_type: str) -> str:
    """ "" where the oracle holds; otherwise why it could not be asked. A wrong capture is an AssertionError."""
    try:
        model = build(model_type)
        with torch.no_grad():
            output = model(input_ids=PADDED[1:], use_cache=False)
        assert output.logits.isfinite().all()
    except Exception as error:  # a new architecture may need fields that are not in FIELDS
        return f"cannot be built tiny here: {type(error).__name__}: {error}"
    try:
        experts.experts_modules(model)
    except BadInput as error:
        return str(error)
    ablation_oracle(model, input_ids=PADDED, attention_mask=MASK, use_cache=False)
    return ""


@pytest.mark.parametrize("model_type", REGISTRY)
def test_capture_sees_what_is_dispatched(model_type):
    reason = verdict(model_type)
    if model_type in WITHOUT_INTERFACE:
        assert model_type.removesuffix("_text") in reason and "hook this one's router" in reason
    elif reason:
        pytest.skip(reason)


def test_at_least_54_architectures_pass_the_oracle():
    reasons = {model_type: verdict(model_type) for model_type in REGISTRY}
    passed = [model_type for model_type, reason in reasons.items() if not reason]
    print(f"\n{len(passed)} of {len(REGISTRY)} architectures pass: {', '.join(passed)}")
    for model_type, reason in reasons.items():
        if reason:
            print(f"- {model_type}: {reason}")
    assert len(passed) >= 54
