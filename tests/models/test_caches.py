"""What a cache holds: by count and by formula, as in a real one, for every type of model; the page of `make size`."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import size as program
import torch
from small_models import SMALL, shrunk
from test_models import sentence
from transformers import AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from shared import memory, models
from shared.errors import CourseError
from shared.models import caches, cards, sizes

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
    assert all(kept < TOKENS[-1] for kept, _ in size.windows), model_type
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


# Types that are not counted here, and why: of the first ones transformers builds or runs no small model in bfloat16 on
# this machine, of the others models.size says so in place of a number.
LEFT_OUT = {
    "dots3_note": "its class takes no config of four layers",
    "gemma3n": "its vision model needs timm",
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "reads the cache of another model"),
    "inkling2_text": "its router asks for float32",
    **dict.fromkeys(("musicgen", "musicgen_melody"), "its decoder has a config of its own"),
    "blt": "bytes, patches of them, and a cache for each",
    "cpmant": "every cache holds a learned prompt",
    "dbrx": "its experts are described in a config inside its own",
    "deepseek_v4": "attention to compressed stretches of tokens has no formula",
    "doge": "its experts are rows of an embedding",
    "hrm_text": "its layers run several times a token",
    "jetmoe": "its experts hold attention too",
    "longcat_flash": "some of its experts do nothing",
    "mllama": "its cross attention keeps nothing without an image",
    **dict.fromkeys(("openai-gpt", "reformer", "xlm"), "keeps no cache"),
    **dict.fromkeys(("qwen4_exp", "qwen4_exp_text"), "its indexer asks for values, which shapes alone have not"),
    "recurrent_gemma": "keeps its state in its modules",
    **dict.fromkeys(("rwkv", "xlstm"), "keeps states in a class of its own"),
    "xlnet": "its memories are no cache of transformers'",
    "xmod": "its adapters ask for values, which shapes alone have not",
}


@pytest.mark.slow
def test_every_causal_model_of_transformers_is_counted_right_or_refused_with_its_name(capsys):
    left_out = {}
    for model_type in CAUSAL:
        if model_type in KINDS:
            continue  # the test above has each of them
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
        for model_type, said in left_out.items():
            print(f"  {model_type} ({LEFT_OUT.get(model_type)}): {said}")
    assert left_out.keys() == LEFT_OUT.keys()


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


def test_a_count_that_lies_on_no_line_agrees_with_no_formula():
    """A prefix of 3 tokens that every sequence has, a state that grows, a cache that grows in steps of 4 tokens."""

    def layer(tokens: int, **held):
        shapes = {name: torch.zeros(1, 2, number, 4) for name, number in held.items()}
        return SimpleNamespace(values=None, **shapes), tokens

    def on_the_line(**at) -> bool:
        (one, _), (two, _), (full, tokens) = (layer(n, **{k: f(n) for k, f in at.items()}) for n in (1, 2, 6))
        return caches._layer(one, two, full, tokens).beside == 0

    assert on_the_line(keys=lambda n: n) and on_the_line(keys=lambda n: min(n, 5))
    assert not on_the_line(keys=lambda n: n + 3)
    assert not on_the_line(keys=lambda n: n, compressed=lambda n: n // 4)
    assert not on_the_line(keys=lambda n: 2 * n if n < 3 else 7)


def test_a_window_keeps_one_token_less_than_attention_sees():
    """The next token makes it full: 127 of gpt-oss's 128 are kept."""
    size = models.size("gpt-oss-20b")
    assert size.windows == ((127, 12 * 2 * 8 * 64 * 2),)
    assert size.cache_bytes(127) == 2 * size.cache_bytes(1) * 127 // 2
    assert size.cache_bytes(128) - size.cache_bytes(127) == size.kv_bytes_per_token
    assert size.cache_bytes(0) == 0


# ---------------------------------------------------------------------------------------------------- make size


@pytest.fixture
def page(capsys):
    """Runs the program; returns its exit code, what it printed, and its stderr."""

    def run(*arguments: str):
        code = program.main(list(arguments))
        return code, *capsys.readouterr()

    return run


def test_the_page_of_a_model_has_its_parts_its_cache_and_what_fits(page):
    code, out, err = page("--name=nemotron-3-nano-30b-a3b")
    assert (code, err) == (0, "")
    size = models.size("nemotron-3-nano-30b-a3b")
    assert f"{size.total:,} parameters, {size.active:,} of them for a token (11.3%)" in out
    assert "from nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16: the repository's config.json" in out
    assert "6,144 bytes a token of keys and values" in out
    assert "48,234,496 bytes recurrent, 1,130,496 bytes of convolutions" in out
    assert "what 8,035 tokens of its own keys and values take" in out
    for part in ("routed experts", "shared experts", "recurrent layers", "attention", "routers", "embeddings"):
        assert f"  {part} " in out, part
    assert "This machine: " in out and max(map(len, out.splitlines())) <= 100


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mamba-130m", "olmoe-1b-7b", "kimi-linear-48b-a3b", "gpt-oss-20b", "tiny/jamba"])
def test_the_parts_of_a_model_add_up_to_its_size(page, name):
    size = models.size(name)
    model = sizes.on_meta(cards.published_config(name))
    routed = sizes.routed(model)
    found = program.parts(model, routed, sizes.top_k(model.config) if routed else 0)
    assert sum(found.values(), program.Part()) == program.Part(size.total, size.active)
    assert set(found) <= {name for name, _ in program.PARTS} | {
        *("embeddings", "output head", "routed experts", "shared experts", "norms and others")
    }
    assert found["norms and others"].total < 0.01 * size.total
    assert page(f"--name={name}")[0] == 0


def test_any_config_that_transformers_knows_has_a_page_and_the_code_that_it_names_is_not_run(page, tmp_path):
    file = tmp_path / "config.json"
    fields = SMALL["olmoe"] | {"vocab_size": 1024, "pad_token_id": 0, "quantization_config": {"quant_method": "mxfp4"}}
    file.write_text(json.dumps(fields | {"auto_map": {"AutoConfig": "evil.Config"}}))
    (tmp_path / "evil.py").write_text("raise SystemExit('this code ran')")
    for given in (file, tmp_path):
        code, out, err = page(f"--config={given}")
        assert (code, err) == (0, "")
        assert "a config.json of type olmoe; the code that it may name (auto_map) is not run" in " ".join(out.split())
        assert f"{sizes.of_config(cards.read_config(file)).total:,} parameters" in out


def test_of_a_model_with_images_the_text_model_is_counted(tmp_path):
    text = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert sizes.of_config(cards.read_config(file)).kv_bytes_per_token == 2 * 2 * 64 * 2


def test_a_kernel_that_a_config_names_is_not_fetched_and_a_format_of_weights_not_asked_for(tmp_path):
    """transformers takes attention from a repository on the hub where a config says so, and that is code."""
    named = {
        "attn_implementation": "evil/kernel",
        "_attn_implementation": "evil/kernel",
        "auto_map": {"AutoConfig": "x"},
    }
    named |= {"experts_implementation": "evil/kernel", "quantization_config": {"quant_method": "fp8"}}
    file = tmp_path / "config.json"
    for fields in (LLAMA | named, {"model_type": "llava", **named, "text_config": LLAMA | named}):
        file.write_text(json.dumps(fields))
        assert sizes.of_config(cards.read_config(file)).kv_bytes_per_token == 2 * 2 * 64 * 2


def test_the_kinds_of_a_sparse_cache_add_up(page, tmp_path):
    """DeepSeek sparse attention keeps latents, and beside them the keys by which it chooses."""
    config = shrunk("glm_moe_dsa")
    size = sizes.of_config(config)
    assert size.latent_bytes_per_token == 4 * (16 + 8) * 2
    assert size.kv_bytes_per_token == size.latent_bytes_per_token + size.index_bytes_per_token
    config.save_pretrained(tmp_path)
    out = page(f"--config={tmp_path}")[1]
    assert "of keys and values" not in out and f"{size.index_bytes_per_token:,} bytes a token of an indexer's" in out


LLAMA = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is not JSON"),
        ("[1, 2]", "has no model_type"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "has no model_type"),
        (json.dumps({"model_type": 3}), "has no model_type"),
        (json.dumps({"model_type": "zzz"}), "is of type 'zzz', which transformers"),
        (json.dumps({"model_type": "zzz", "auto_map": {}}), "names code of its own (auto_map), which is never run"),
        (json.dumps({"model_type": "t5"}), "is of type 't5', which is no causal language model"),
        (json.dumps(LLAMA | {"hidden_size": "wide"}), "describes no model of type 'llama'"),
        (json.dumps(LLAMA | {"hidden_size": -64}), "cannot be built from this config"),
        (json.dumps(LLAMA | {"num_hidden_layers": 10**9}), "asks for 1000000000 layers, and from 1 to 1,000 are"),
        (json.dumps(LLAMA | {"num_hidden_layers": -2}), "asks for -2 layers"),
        (json.dumps(LLAMA | {"num_attention_heads": 0}), ""),
        (json.dumps(LLAMA | {"vocab_size": 10**30}), ""),
    ],
)
def test_a_config_that_is_none_is_one_sentence(page, tmp_path, content, said):
    file = tmp_path / "config.json"
    file.write_text(content)
    code, out, err = page(f"--config={file}")
    assert (code, out) == (1, "") and said in err and "traceback" not in err
    assert err.count("\n") == 1 and err.endswith(".\n") and len(err) < 400


def test_wrong_arguments_are_one_sentence(page, tmp_path):
    binary = tmp_path / "weights"
    binary.write_bytes(bytes(range(256)))
    for arguments, said in (
        ((), "Name one model: NAME=mamba-2.8b of the course, or CONFIG=path/to/config.json"),
        (("--name=mamba-130m", "--config=x"), "Name one model"),
        (("--name=mamba-131m",), "the closest is 'mamba-130m'"),
        (("--config=nowhere.json",), "nowhere.json cannot be read (No such file or directory)"),
        ((f"--config={tmp_path}",), "cannot be read"),
        (("--config=" + "x" * 5000,), "cannot be read (File name too long)"),
        (("--config=~nobody-of-this-name/config.json",), "cannot be read"),
        ((f"--config={binary}",), "is not JSON"),
        (("--deep",), "unrecognized arguments"),
    ):
        code, out, err = page(*arguments)
        assert (code, out) == (1, "") and said in err and err.count("\n") == 1, arguments


def test_the_longest_context_is_the_last_that_fits():
    for name in ("gpt-oss-20b", "nemotron-3-nano-30b-a3b", "pythia-160m"):
        size = models.size(name)
        for room in (size.cache_bytes(1), size.cache_bytes(1) + 1, 10**8, 10**10):
            longest = program.longest_context(size, room)
            assert size.cache_bytes(longest) <= room < size.cache_bytes(longest + 1)
    assert program.longest_context(models.size("mamba-130m"), 10**9) is None
