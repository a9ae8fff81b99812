"""DeepSeekMoE in its published layout: what is written, what is read, what is computed, and what is never executed."""

import importlib
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from shared.models import deepseek

deepseek.register()

# A published config.json of transformers 4 (deepseek-ai/deepseek-moe-16b-base), with small sizes.
PUBLISHED = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "aux_loss_alpha": 0.001,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "model_type": "deepseek",
    "moe_intermediate_size": 16,
    "moe_layer_freq": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 4,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000,
    "scoring_func": "softmax",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.36.2",
    "use_cache": True,
    "vocab_size": 64,
}
IDS = torch.arange(24).view(2, 12) * 5 % 64


def published_names(config: dict) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published checkpoint, written down from its index, not from our classes."""
    d, V, dense, M = (config[k] for k in ("hidden_size", "vocab_size", "intermediate_size", "moe_intermediate_size"))

    def mlp(prefix, width):
        return {f"{prefix}.{n}_proj.weight": (d, width) if n == "down" else (width, d) for n in ("gate", "up", "down")}

    names = {"model.embed_tokens.weight": (V, d), "model.norm.weight": (d,), "lm_head.weight": (V, d)}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        names |= {f"{at}.self_attn.{n}_proj.weight": (d, d) for n in "qkvo"}
        names |= {f"{at}.{n}_layernorm.weight": (d,) for n in ("input", "post_attention")}
        if layer == 0:
            names |= mlp(f"{at}.mlp", dense)
            continue
        names |= {f"{at}.mlp.gate.weight": (config["n_routed_experts"], d)}
        names |= mlp(f"{at}.mlp.shared_experts", M * config["n_shared_experts"])
        for expert in range(config["n_routed_experts"]):
            names |= mlp(f"{at}.mlp.experts.{expert}", M)
    return names


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint in the published layout, written without our classes; every weight is visible in the output."""
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: 1 + 0.1 * torch.randn(shape, generator=generator)
        if "norm" in name
        else 0.3 * torch.randn(shape, generator=generator)
        for name, shape in published_names(PUBLISHED).items()
    }
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    return tmp_path


def reference(weights: dict[str, torch.Tensor], config: dict, ids: torch.Tensor) -> torch.Tensor:
    """DeepSeekMoE in plain torch after Dai et al. 2024, equations 3 to 11: one token at a time through its experts."""
    heads, eps = config["num_attention_heads"], config["rms_norm_eps"]
    width = config["hidden_size"] // heads
    (B, T), n_layers = ids.shape, config["num_hidden_layers"]

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]

    def ffn(x, name):
        gate, up, down = (weights[f"{name}.{n}_proj.weight"] for n in ("gate", "up", "down"))
        return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T

    angle = torch.arange(T)[:, None] / config["rope_theta"] ** (torch.arange(0, width, 2) / width)

    def rotate(x):  # the two halves of a head are the real and the imaginary parts
        z = torch.complex(x[..., : width // 2], x[..., width // 2 :]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag], -1)

    def attention(x, name):
        q, k, v = ((x @ weights[f"{name}.{n}_proj.weight"].T).view(B, T, heads, width).transpose(1, 2) for n in "qkv")
        score = rotate(q) @ rotate(k).transpose(2, 3) / width**0.5
        score = score.masked_fill(torch.ones(T, T).triu(1).bool(), float("-inf")).softmax(-1)
        return (score @ v).transpose(1, 2).reshape(B, T, -1) @ weights[f"{name}.o_proj.weight"].T

    def moe(x, name):
        out = ffn(x, f"{name}.shared_experts")
        affinity = (x @ weights[f"{name}.gate.weight"].T).softmax(-1)
        for b in range(B):
            for t in range(T):
                for expert in affinity[b, t].topk(config["num_experts_per_tok"]).indices.tolist():
                    out[b, t] += affinity[b, t, expert] * ffn(x[b, t], f"{name}.experts.{expert}")
        return out

    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(n_layers):
        at = f"model.layers.{layer}"
        x = x + attention(norm(x, f"{at}.input_layernorm"), f"{at}.self_attn")
        y = norm(x, f"{at}.post_attention_layernorm")
        x = x + (ffn if layer < config["first_k_dense_replace"] else moe)(y, f"{at}.mlp")
    return norm(x, "model.norm") @ weights["lm_head.weight"].T


def test_published_checkpoint_loads_and_computes_what_the_paper_says(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert type(model) is deepseek.DeepseekForCausalLM
    weights = load_file(checkpoint / "model.safetensors")
    with torch.no_grad():
        expected, found = reference(weights, PUBLISHED, IDS), model(IDS).logits
    assert expected.std() > 0.1, "logits near zero would agree whatever the model computes"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_reference_would_notice_routing_weights_that_are_one_percent_off(checkpoint):
    weights = load_file(checkpoint / "model.safetensors")
    wrong = {name: weight * 1.01 if name.endswith("mlp.gate.weight") else weight for name, weight in weights.items()}
    with torch.no_grad():
        difference = reference(weights, PUBLISHED, IDS) - reference(wrong, PUBLISHED, IDS)
    assert difference.abs().max() > 1e-4


def test_every_published_weight_is_read_and_none_is_made_up(checkpoint):
    _, info = AutoModelForCausalLM.from_pretrained(checkpoint, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


def test_saved_file_has_the_published_names_and_shapes_and_returns_every_bit(checkpoint, tmp_path):
    AutoModelForCausalLM.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    with safe_open(tmp_path / "again/model.safetensors", "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == published_names(PUBLISHED)  # noqa: SIM118
    before, after = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "again/model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    saved = json.loads((tmp_path / "again/config.json").read_text())
    assert saved["model_type"] == "deepseek" and saved["first_k_dense_replace"] == 1


def test_generation_with_the_cache_agrees_with_full_forwards(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    written = model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    ids = IDS
    with torch.no_grad():
        for _ in range(6):
            ids = torch.cat([ids, model(ids, use_cache=False, logits_to_keep=1).logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(written, ids)


def test_loss_is_the_next_tokens_cross_entropy(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    output = model(IDS, labels=IDS)
    expected = F.cross_entropy(output.logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    torch.testing.assert_close(output.loss, expected)


@pytest.mark.parametrize("consent", [None, False, True])
def test_code_that_comes_with_a_checkpoint_is_never_executed(checkpoint, consent):
    trap = checkpoint / "executed"
    config = PUBLISHED | {
        "auto_map": {
            "AutoConfig": "modeling_deepseek.DeepseekConfig",
            "AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM",
        }
    }
    (checkpoint / "config.json").write_text(json.dumps(config))
    (checkpoint / "modeling_deepseek.py").write_text(f"open({str(trap)!r}, 'w').close()\nraise SystemExit\n")
    options = {} if consent is None else {"trust_remote_code": consent}
    model = AutoModelForCausalLM.from_pretrained(checkpoint, **options)
    assert type(model) is deepseek.DeepseekForCausalLM
    assert not trap.exists()


def test_registering_twice_is_harmless(checkpoint):
    importlib.reload(deepseek).register()
    deepseek.register()
    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is deepseek.DeepseekConfig
    assert type(AutoModelForCausalLM.from_pretrained(checkpoint)) is deepseek.DeepseekForCausalLM


@pytest.mark.parametrize(
    ("first", "every", "kinds"),
    [(1, 1, "dense sparse sparse sparse"), (0, 2, "sparse dense sparse dense"), (2, 1, "dense dense sparse sparse")],
)
def test_dense_and_sparse_layers_follow_the_published_fields(first, every, kinds):
    sizes = {"num_hidden_layers": 4, "first_k_dense_replace": first, "moe_layer_freq": every}
    assert deepseek.DeepseekConfig(**PUBLISHED | sizes).mlp_layer_types == kinds.split()


@pytest.mark.parametrize(("field", "value"), [("norm_topk_prob", True), ("scoring_func", "sigmoid")])
def test_a_field_that_cannot_be_honoured_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field}={value!r}.*Use a checkpoint"):
        deepseek.DeepseekConfig(**PUBLISHED | {field: value})


def test_defaults_are_those_of_the_published_model():
    with torch.device("meta"):
        model = deepseek.DeepseekForCausalLM(deepseek.DeepseekConfig())
    assert sum(p.numel() for p in model.parameters()) == 16_375_728_128


def test_the_experts_run_grouped_by_default_and_give_what_one_by_one_gives(checkpoint):
    model = AutoModelForCausalLM.from_pretrained(checkpoint).eval()
    assert model.get_experts_implementation()[""] == "grouped_mm"
    with torch.no_grad():
        grouped = model(IDS).logits
        model.set_experts_implementation("eager")
        torch.testing.assert_close(model(IDS).logits, grouped, atol=1e-5, rtol=1e-5)
