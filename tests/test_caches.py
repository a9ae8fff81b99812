"""What a cache holds: by count and by formula, as in a real one, for every type of model."""

from dataclasses import replace

import pytest
import torch
from small_models import shrunk
from test_models import sentence
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from shared import memory, models
from shared.errors import CourseError
from shared.models import caches, sizes

TOKENS = (1, 2, 7, 300)  # 300 fill a window of 16
# One of each kind of cache: these run with every check, all types with `make test`.
KINDS = (
    *("llama", "gpt_bigcode", "gemma3_text", "gpt_oss", "mistral", "deepseek_v3", "glm_moe_dsa", "lfm2_moe", "minimax"),
    *("mamba2", "nemotron_h", "granitemoehybrid", "falcon_h1", "zamba", "zamba2", "qwen3_5_moe_text", "qwen3_next"),
    *("kimi_linear", "olmo_hybrid"),
)


def real_cache(model, tokens: int) -> memory.CacheBytes:
    """What a forward over so many tokens leaves in memory."""
    with torch.no_grad():
        out = model(input_ids=torch.ones((1, tokens), dtype=torch.long), use_cache=True)
    return memory.cache_bytes(out.cache_params if hasattr(out, "cache_params") else out.past_key_values)


def compare(model_type: str) -> None:
    """Assert that the size of a small model of a type is what a real one holds. Raises as its classes do."""
    config = shrunk(model_type)
    size = sizes.of_config(config, torch.bfloat16)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    for tokens in TOKENS:
        held = real_cache(model, tokens)
        windows = sum(min(tokens, kept) * per_token for kept, per_token in size.windows)
        growing = tokens * size.kv_bytes_per_token
        assert (held.kv + held.latent + held.index, held.window) == (growing, windows), (model_type, tokens)
        assert held.recurrent == size.recurrent_bytes, (model_type, tokens)
        assert held.conv + held.recurrent == size.state_bytes, (model_type, tokens)
        assert held.total == size.cache_bytes(tokens) > 0, (model_type, tokens)


@pytest.mark.parametrize("model_type", KINDS)
def test_the_cache_by_count_and_formula_is_what_a_real_one_holds(model_type):
    compare(model_type)


@pytest.mark.slow
def test_every_causal_model_of_transformers_is_counted_right_or_refused_with_its_name(capsys):
    left_out = {}
    for model_type in CAUSAL:
        try:
            compare(model_type)
        except AssertionError:
            raise
        except CourseError as refused:
            assert "type" in str(refused)
            left_out[model_type] = str(refused)
        except Exception as failed:  # transformers' own classes, which do not build a small model of this type
            left_out[model_type] = f"no small model is built ({type(failed).__name__})"
    covered = len(CAUSAL) - len(left_out)
    with capsys.disabled():
        print(f"\n{covered} of {len(CAUSAL)} types of causal models are counted as a real cache holds; left out:")
        for model_type, why in left_out.items():
            print(f"  {model_type}: {why}")
    assert covered >= 145 and not set(KINDS) & set(left_out)


def test_a_cache_that_the_formula_does_not_give_is_refused_with_the_type_and_both_numbers(monkeypatch):
    config = shrunk("llama")
    doubled = [replace(layer, per_token=2 * layer.per_token) for layer in caches.by_formula(config, torch.bfloat16)]
    monkeypatch.setattr(caches, "by_formula", lambda config, dtype: doubled)
    with pytest.raises(CourseError) as error:
        sizes.of_config(config)
    assert "'llama' is 512,000 bytes after 1,000 tokens as counted" in sentence(error)
    assert "1,024,000 by the formula" in str(error.value)


@pytest.mark.parametrize(
    ("model_type", "named"),
    [
        ("deepseek_v4", "a layer of type 'heavily_compressed_attention'"),  # no formula
        ("recurrent_gemma", "A layer of type 'linear_attention' in a model of type 'recurrent_gemma'"),
        ("mllama", "type 'mllama_text_model' is 384,000 bytes"),  # its cross attention keeps nothing without an image
        ("openai-gpt", "'openai-gpt' keeps no cache"),
        ("jetmoe", "'jetmoe' has 4 experts"),
    ],
)
def test_a_cache_that_is_not_known_for_sure_is_an_error_that_names_it_and_never_a_number(model_type, named):
    with pytest.raises(CourseError) as error:
        sizes.of_config(shrunk(model_type))
    assert named in sentence(error)


def test_of_layers_built_alike_the_first_alone_runs_and_a_layer_that_differs_is_found():
    """Layer 2 of 4 keeps twice the heads: a count that took it for the first would miss it."""
    model = sizes.on_meta(shrunk("llama"))
    expected = caches.by_formula(model.config, model.dtype)
    assert caches.counted_alike(model, expected)
    attention = model.model.layers[2].self_attn
    with torch.device("meta"):
        attention.k_proj = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
        attention.v_proj = torch.nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    attention.num_key_value_groups = 1
    assert not caches.counted_alike(model, expected)
    assert len(model.model.layers) == 4
    with pytest.raises(CourseError, match="'llama' is 640,000 bytes"):
        caches.layers(model)


def test_a_window_keeps_one_token_less_than_attention_sees():
    """The next token makes it full: 127 of gpt-oss's 128 are kept."""
    size = models.size("gpt-oss-20b")
    assert size.windows == ((127, 12 * 2 * 8 * 64 * 2),)
    assert size.cache_bytes(127) == 2 * size.cache_bytes(1) * 127 // 2
    assert size.cache_bytes(128) - size.cache_bytes(127) == size.kv_bytes_per_token
    assert size.cache_bytes(0) == 0
