"""Sizes to the last parameter, loading that refuses clearly, and predictions that one real forward confirms."""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from IPython.core.inputtransformer2 import TransformerManager
from safetensors.torch import load_file, save_file
from small_models import SMALL, shrunk, write

from shared import files, memory, models, scan
from shared.hub.catalogue import CONFIGS
from shared.machine import pool
from shared.models import cards, checkpoints, fitting, loading, sizes

# Total and active parameters, KV bytes per token in bf16, state bytes (fp32 recurrent and bf16 convolution, so for
# mamba-130m 24 x (1536 x 16 x 4 + 1536 x 4 x 2)). Typed in on purpose: a changed config or a changed library must show.
PUBLISHED = {
    "mamba-130m": (129_135_360, 129_135_360, 0, 2_654_208),
    "mamba-1.4b": (1_372_178_432, 1_372_178_432, 0, 14_155_776),
    "mamba-2.8b": (2_768_345_600, 2_768_345_600, 0, 23_592_960),
    "pythia-160m": (162_322_944, 162_322_944, 36_864, 0),
    "pythia-1.4b": (1_414_647_808, 1_414_647_808, 196_608, 0),
    "pythia-2.8b": (2_775_208_960, 2_775_208_960, 327_680, 0),
    "mixtral-8x7b": (46_702_792_704, 12_879_925_248, 131_072, 0),
    "deepseek-moe-16b": (16_375_728_128, 2_828_650_496, 229_376, 0),
    "olmoe-1b-7b": (6_919_161_856, 1_282_017_280, 131_072, 0),
    "jamba-v0.1": (51_570_323_328, 12_110_311_296, 16_384, 16_515_072),
}
# The same, with the recurrent part of the state and the windows, of models that the course has as configs alone.
PUBLISHED_2026 = {
    "mamba2-2.7b": (2_702_599_680, 2_702_599_680, 0, 170_524_672, 167_772_160, ()),
    "mamba2attn-2.7b": (2_825_982_560, 2_825_982_560, 92_160, 154_537_984, 152_043_520, ()),
    "transformerpp-2.7b": (2_666_457_600, 2_666_457_600, 327_680, 0, 0, ()),
    "nemotron-3-nano-30b-a3b": (31_577_937_344, 3_580_073_408, 6_144, 49_364_992, 46 * 2**20, ()),
    "granite-4.0-h-tiny": (6_939_037_248, 1_465_470_528, 8_192, 57_581_568, 54 * 2**20, ()),
    "granite-4.0-h-small": (32_207_337_984, 8_803_121_664, 16_384, 153_427_968, 144 * 2**20, ()),
    "qwen3.5-35b-a3b": (34_660_610_688, 3_454_988_928, 20_480, 64_880_640, 60 * 2**20, ()),
    "qwen3.5-0.8b": (752_393_024, 752_393_024, 12_288, 19_759_104, 18 * 2**20, ()),
    "qwen3-30b-a3b": (30_532_122_624, 3_353_032_704, 98_304, 0, 0, ()),
    "qwen3-next-80b-a3b": (79_674_391_296, 3_874_929_408, 24_576, 77_856_768, 72 * 2**20, ()),
    "kimi-linear-48b-a3b": (49_122_675_072, 3_484_453_248, 8_064, 43_909_120, 40 * 2**20, ()),
    "gpt-oss-20b": (20_914_757_184, 4_187_440_704, 24_576, 0, 0, ((127, 24_576),)),
    "gpt-oss-120b": (116_829_156_672, 5_711_982_912, 36_864, 0, 0, ((127, 36_864),)),
    "lfm2-8b-a1b": (8_339_929_856, 1_557_740_288, 12_288, 221_184, 0, ()),
}
ONE_SENTENCE = re.compile(r"(?!.*[.] [A-Z])[^\n]*[^. ]\.")


def sentence(error) -> str:
    """The message of an error that a student sees: one line, one full stop at its end, no stack of frames."""
    shown = error.value._render_traceback_()
    assert isinstance(error.value, models.CourseError) and shown == [f"{type(error.value).__name__}: {error.value}"]
    assert ONE_SENTENCE.fullmatch(str(error.value)), str(error.value)
    return str(error.value)


@pytest.fixture
def course(tmp_path, monkeypatch):
    """A course whose tiny models are small random ones, written by save_pretrained, so that files can be damaged."""
    data = tmp_path / "data"
    shutil.copytree(files.DATA / "models", data / "models")
    shutil.copytree(files.DATA / "tiny" / "tokenizer", data / "tiny" / "tokenizer")
    monkeypatch.setattr(files, "DATA", data)
    sizes.of_card.cache_clear()
    for name in SMALL:
        write(data / "tiny" / name, name)
    yield data / "tiny"
    sizes.of_card.cache_clear()


def offline(monkeypatch, cache):
    """A machine without a network, whose Hugging Face cache is an empty folder."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def prefill(model, tokens: int, batch: int = 1):
    with torch.no_grad():
        out = model(torch.randint(100, 900, (batch, tokens)), use_cache=True)
    return out.logits, out.cache_params if hasattr(out, "cache_params") else out.past_key_values


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("name", models.MODELS)
def test_sizes_equal_the_published_ones_to_the_last_parameter(name):
    total, active, kv, state = PUBLISHED[name]
    assert models.size(name) == models.ModelSize(total, active, 2 * total, kv, state)


@pytest.mark.parametrize("name", CONFIGS)
def test_sizes_of_models_of_2026_equal_the_published_ones_to_the_last_byte(name):
    total, active, kv, state, recurrent, windows = PUBLISHED_2026[name]
    size = models.size(name)
    assert size == models.ModelSize(total, active, 2 * total, kv, state, windows)
    assert size.recurrent_bytes == recurrent
    assert size.latent_bytes_per_token == (8_064 if name.startswith("kimi") else 0)
    held = sum(min(1_000_000, kept) * per_token for kept, per_token in windows)
    assert size.cache_bytes(1_000_000) == 1_000_000 * kv + state + held


def test_the_shape_of_the_hybrid_differs_from_the_published_model_by_what_its_source_says():
    """The published one ties its head to the embedding, and attention has a convolution with a bias over 4 steps."""
    width, head, queries = 2560, 50_288 * 2560, 30 * 128
    mamba2 = (models.size("mamba2-2.7b").total - head - width) // 64
    convolution = 3 * queries * (4 + 1)
    attention = width + 3 * queries * width + convolution + queries * width
    published = head + width + 58 * mamba2 + 6 * attention
    assert published == 2_697_590_880
    assert models.size("mamba2attn-2.7b").total == published + head - 6 * convolution


def test_the_shape_of_the_transformer_is_of_the_size_that_its_name_says():
    assert models.size("transformerpp-2.7b").total == pytest.approx(2.7e9, rel=0.02)
    assert models.size("transformerpp-2.7b").kv_bytes_per_token == models.size("pythia-2.8b").kv_bytes_per_token


def test_a_model_of_which_the_course_has_the_config_alone_comes_with_random_weights_or_not_at_all():
    with pytest.raises(models.BadInput) as error:
        models.load("qwen3.5-0.8b", device="cpu")
    assert "the config of qwen3.5-0.8b alone" in sentence(error)
    assert models.fits("qwen3.5-0.8b", context=1000).needed_bytes == (
        2 * PUBLISHED_2026["qwen3.5-0.8b"][0] + 1000 * 12_288 + 19_759_104
    )
    assert checkpoints.cached(models.card("qwen3.5-0.8b")) is None


def test_every_published_config_has_a_repository_and_the_other_way_round():
    assert {file.stem for file in (files.DATA / "models").glob("*.json")} == {*models.MODELS, *CONFIGS}
    assert all(config.source and config.repo.count("/") == 1 for config in CONFIGS.values())


def test_sizes_follow_the_dtype_but_recurrent_states_stay_in_fp32():
    half, full = models.size("jamba-v0.1"), models.size("jamba-v0.1", torch.float32)
    assert full.total == half.total and full.weight_bytes == 2 * half.weight_bytes
    assert full.kv_bytes_per_token == 2 * half.kv_bytes_per_token
    recurrent = 28 * 8192 * 16 * 4
    assert full.state_bytes - recurrent == 2 * (half.state_bytes - recurrent)


def test_a_name_is_looked_up_once_on_the_way_into_memory(course, monkeypatch):
    asked, read = [], []
    for module in (loading, fitting, sizes):
        monkeypatch.setattr(module, "card", lambda name: asked.append(name) or cards.card(name))
    config = cards.Card.config.func
    monkeypatch.setattr(cards.Card.config, "func", lambda card: read.append(card.name) or config(card))
    for weights in ("random", "trained"):
        models.load("tiny/mamba", device="cpu", weights=weights)
    assert asked == ["tiny/mamba"] * 2 and len(read) <= 3  # its size is kept from the first time on


def test_counting_a_model_leaves_its_config_as_it_was():
    card = models.card("tiny/olmoe")
    before = card.config.to_dict(), vars(card.config).copy()
    sizes.of_config(card.config)
    assert (card.config.to_dict(), vars(card.config)) == before


@pytest.mark.slow
def test_sizing_the_largest_model_takes_no_memory():
    models.size("mixtral-8x7b")
    sizes.of_card.cache_clear()
    with memory.track("cpu") as m:
        models.size("jamba-v0.1")
    assert m.peak_bytes < 100e6 < 103e9 < models.size("jamba-v0.1").weight_bytes


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_predicted_cache_bytes_are_the_measured_ones(course, name, dtype):
    size = models.size(f"tiny/{name}", dtype)
    model, _ = models.load(f"tiny/{name}", dtype=dtype, device="cpu")
    for tokens, batch in ((3, 1), (40, 2)):
        held = memory.cache_bytes(prefill(model, tokens, batch)[1])
        assert held.kv == batch * tokens * size.kv_bytes_per_token
        assert held.conv + held.recurrent == batch * size.state_bytes
        assert held.total == held.kv + held.conv + held.recurrent > 0


@pytest.mark.parametrize("name", SMALL)
def test_weight_bytes_are_those_of_the_loaded_model(course, name):
    model, _ = models.load(f"tiny/{name}", device="cpu")
    size = models.size(f"tiny/{name}")
    assert sum(p.numel() * p.element_size() for p in model.parameters()) == size.weight_bytes == 2 * size.total


def test_active_parameters_leave_out_the_experts_that_a_token_does_not_see(course):
    size = models.size("tiny/olmoe")
    one_expert = 3 * 32 * 16
    assert size.total - size.active == 2 * (8 - 2) * one_expert
    assert models.size("tiny/transformer").active == models.size("tiny/transformer").total


@pytest.mark.parametrize(
    ("name", "closest"),
    [("mamba-2.8", "mamba-2.8b"), ("Mixtral-8x7B", "mixtral-8x7b"), ("tiny/mamba2", "tiny/mamba"), ("zzz", None)],
)
@pytest.mark.parametrize("ask", [models.size, models.load, models.fits])
def test_an_unknown_name_is_answered_with_the_known_ones_and_the_closest(ask, name, closest):
    with pytest.raises(ValueError, match=re.escape(repr(name))) as error:
        ask(name)
    text = sentence(error)
    assert all(known in text for known in (*models.MODELS, *models.TINY))
    assert (f"the closest is '{closest}'" in text) if closest else ("closest" not in text)


# --------------------------------------------------------------------------------------------------------------- fits


@pytest.mark.slow
def test_fits_adds_the_cache_of_the_context(monkeypatch):
    monkeypatch.setattr(pool, "available", lambda device=None: 6_000_000_000)
    size = models.size("pythia-2.8b")
    short, long = models.fits("pythia-2.8b", device="cpu"), models.fits("pythia-2.8b", context=2048, device="cpu")
    assert short and short.fits and short.needed_bytes == size.weight_bytes
    assert not long and long.needed_bytes == size.weight_bytes + 2048 * 327_680
    assert str(long) == (
        "pythia-2.8b with 2,048 tokens of context does not fit: it needs 6.22 GB on cpu and 6 GB are available; the "
        "smaller pythia-1.4b fits."
    )
    assert models.fits("mamba-2.8b", context=1_000_000, device="cpu").needed_bytes == 5_536_691_200 + 23_592_960


@pytest.fixture
def spark(spark):
    spark.leave(126e9)
    return spark


@pytest.mark.slow
def test_on_unified_memory_trained_weights_need_room_for_what_is_in_flight_while_they_load(spark):
    """Jamba's experts of one layer: 16 x 2 x 14,336 x 4,096 in 16 bits, counted four times."""
    jamba = models.fits("jamba-v0.1")
    in_flight = 4 * 16 * 2 * 14336 * 4096 * 2
    assert not jamba and jamba.needed_bytes == models.size("jamba-v0.1").weight_bytes + in_flight
    assert (
        "needs 118 GB (15 GB of it while it loads) on cuda and 106 GB are available beside the 19.6 GB that stay"
        in str(jamba)
    )
    assert models.fits("jamba-v0.1", weights="random").needed_bytes == models.size("jamba-v0.1").weight_bytes
    assert models.fits("deepseek-moe-16b") and models.fits("mixtral-8x7b")
    assert not models.fits("mixtral-8x7b", context=100_000)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["trained", "random"])
def test_a_model_larger_than_memory_is_refused_before_anything_is_allocated(monkeypatch, weights):
    monkeypatch.setattr(pool, "available", lambda device=None: 3_000_000_000)
    models.size("mamba-2.8b")
    with memory.track("cpu") as m, pytest.raises(models.NotEnoughMemory) as error:
        models.load("mamba-2.8b", weights=weights, device="cpu")
    assert m.peak_bytes < 50e6
    assert sentence(error) == (
        "mamba-2.8b does not fit: it needs 5.54 GB on cpu and 3 GB are available; the smaller mamba-1.4b fits."
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "free", "advice"),
    [
        ("mixtral-8x7b", 20e9, "the smaller olmoe-1b-7b fits."),
        ("pythia-1.4b", 0.4e9, "the smaller pythia-160m fits."),
        ("mamba-130m", 0, "no model of the course fits: close what else holds memory."),
    ],
)
def test_who_lacks_memory_is_told_the_largest_model_that_fits(monkeypatch, course, name, free, advice):
    monkeypatch.setattr(pool, "available", lambda device=None: int(free))
    with pytest.raises(models.NotEnoughMemory) as error:
        models.load(name, weights="random", device="cpu")
    assert sentence(error).endswith(advice)


# ------------------------------------------------------------------------------------------------------- 8-bit experts


def test_eight_bit_experts_take_a_byte_a_value_and_five_a_row():
    experts, rows = 32 * 8 * 3 * 4096 * 14336, 32 * 8 * (2 * 14336 + 4096)
    size = models.size("mixtral-8x7b", bits=8)
    assert size.weight_bytes == 2 * (46_702_792_704 - experts) + experts + 5 * rows
    assert size.total == models.size("mixtral-8x7b").total


@pytest.mark.parametrize(("name", "bits"), [("mamba-2.8b", 8), ("mixtral-8x7b", 4)])
def test_bits_that_are_not_offered_are_refused(name, bits):
    with pytest.raises(ValueError, match=rf"{name} with {bits} bits is not offered") as error:
        models.size(name, bits=bits)
    sentence(error)


@pytest.mark.parametrize("model_type", ["mixtral", "olmoe", "nemotron_h", "qwen3_5_moe_text", "gpt_oss"])
def test_the_names_of_eight_bit_weights_are_those_of_all_routed_experts_and_no_others(model_type):
    model = sizes.on_meta(shrunk(model_type))
    routed = {name for name, shape in sizes.routed(model).items() if len(shape) == 3}
    chosen = {name for name, _ in model.named_parameters() if re.fullmatch(loading.EIGHT_BIT, name)}
    assert chosen == routed and routed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "free", "smaller"),
    [("mixtral-8x7b", 119e9, "deepseek-moe-16b"), ("jamba-v0.1", 126e9, "mixtral-8x7b")],
)
def test_on_a_spark_the_two_largest_are_offered_in_eight_bits_before_anything_is_fetched(
    spark, monkeypatch, name, free, smaller
):
    spark.leave(free)
    monkeypatch.setattr(checkpoints, "folder", lambda card: pytest.fail("it was fetched"))
    with pytest.raises(models.NotEnoughMemory) as error:
        models.load(name)
    eight = models.fits(name, bits=8)
    size = models.size(name, bits=8)
    assert eight and eight.needed_bytes == size.weight_bytes + 4 * size.largest_bytes < 75e9
    offer = f"; with bits=8 it needs {memory.human(eight.needed_bytes)} and fits, the smaller {smaller} fits."
    assert sentence(error).endswith(offer) and sentence(error).endswith(f"{models.fits(name)}")


def test_eight_bits_without_torchao_or_with_random_weights_is_one_sentence():
    with pytest.raises(models.CourseError, match=re.escape('pip install -e ".[eight-bit]"`')) as error:
        models.load("tiny/olmoe", device="cpu", bits=8)
    sentence(error)
    with pytest.raises(models.BadInput, match="is for trained weights") as error:
        models.load("tiny/olmoe", device="cpu", bits=8, weights="random")
    sentence(error)


@pytest.fixture(scope="module")
def with_torchao() -> dict[str, str]:
    """The variables of a process that has torchao; it lies in a folder of its own, so that no other test imports it."""
    folder = files.ROOT / ".venv/eight-bit"
    if not (folder / "torchao").exists():
        project = tomllib.loads((files.ROOT / "pyproject.toml").read_text())["project"]
        (torchao,) = project["optional-dependencies"]["eight-bit"]
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, torchao]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode and not os.environ.get("CI"):
            pytest.skip(f"pip could not install {torchao}")
        assert done.returncode == 0, done.stderr
    return {**os.environ, "PYTHONPATH": f"{folder}:{files.ROOT}"}


@pytest.mark.slow
def test_eight_bit_experts_take_the_predicted_bytes_and_say_nearly_the_same(with_torchao):
    code = """
import torch
from shared import data, models
ids = data.random_tokens(1024, [300])[300]
for name in ("tiny/olmoe", "tiny/deepseek-moe", "tiny/jamba"):
    full, _ = models.load(name, device="cpu")
    eight, _ = models.load(name, device="cpu", bits=8)
    parts = lambda p: [p.qdata, p.scale, p.zero_point] if hasattr(p, "qdata") else [p]
    held = sum(t.numel() * t.element_size() for p in eight.parameters() for t in parts(p))
    with torch.no_grad():
        same = (full(ids).logits.argmax(-1) == eight(ids).logits.argmax(-1)).float().mean().item()
    written = eight.generate(ids[:, :8], max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0).shape[1]
    odd = [n for n, p in eight.named_parameters() if ".experts." in n and p.dim() == 3 and not hasattr(p, "qdata")]
    print(held == models.size(name, bits=8).weight_bytes < models.size(name).weight_bytes, same > 0.85, written, odd)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=with_torchao)
    assert done.stdout.splitlines() == ["True True 11 []"] * 3, done.stdout + done.stderr


@pytest.mark.slow
def test_of_a_nemotron_h_the_routed_experts_alone_become_eight_bit(tmp_path, with_torchao):
    config = shrunk("nemotron_h")
    loading.from_config(config, torch.bfloat16, torch.device("cpu")).save_pretrained(tmp_path)
    code = f"""
import torch
from pathlib import Path
from shared.models import loading
options = loading._eight_bit_experts("trained")
model = loading.from_folder(Path({str(tmp_path)!r}), torch.bfloat16, torch.device("cpu"), **options)
plain = loading.from_folder(Path({str(tmp_path)!r}), torch.bfloat16, torch.device("cpu"))
eight = sorted(n for n, p in model.named_parameters() if hasattr(p, "qdata") and p.qdata.dtype == torch.int8)
print(*eight)
before = dict(plain.named_parameters())
print(all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n not in eight))
ids = torch.arange(3, 35).view(1, 32)
with torch.no_grad():
    a, b = plain(ids, use_cache=False).logits, model(ids, use_cache=False).logits
print(not torch.equal(a, b), ((a - b).abs().max() < 0.05 * a.abs().max()).item())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=with_torchao)
    assert len(done.stdout.splitlines()) == 3, done.stdout + done.stderr
    eight, others_as_they_were, logits = done.stdout.splitlines()
    routed = sizes.routed(sizes.on_meta(config))
    assert set(eight.split()) == set(routed) and {name.split(".")[-1] for name in routed} == {"up_proj", "down_proj"}
    assert others_as_they_were == "True" and logits == "True True"
    names = [name for name, _ in sizes.on_meta(config).named_parameters()]
    assert any("shared_experts.up_proj" in name for name in names), "which keeps its 16 bits"


# ------------------------------------------------------------------------------------------------------ random weights


@pytest.mark.parametrize("name", SMALL)
def test_random_weights_give_finite_logits_and_repeat(course, name):
    shutil.rmtree(course / name / "x", ignore_errors=True)
    (course / name / "model.safetensors").unlink()  # not needed
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    model, tokenizer = models.load(f"tiny/{name}", weights="random", device="cpu")
    assert torch.equal(torch.rand(2), expected)  # the caller's generator is left alone
    again, _ = models.load(f"tiny/{name}", weights="random", device="cpu")
    assert not model.training and tokenizer is not None
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    logits, _ = prefill(model, 20)
    assert logits.isfinite().all() and logits.std() > 0


@pytest.mark.slow
def test_random_weights_of_a_published_model_need_no_network_and_no_second_copy(tmp_path, monkeypatch):
    offline(monkeypatch, tmp_path)
    with memory.track("cpu") as m:
        model, tokenizer = models.load("mamba-130m", weights="random", device="cpu")
    size = models.size("mamba-130m")
    assert sum(p.numel() for p in model.parameters()) == size.total and tokenizer is None
    assert m.peak_bytes < 1.5 * size.weight_bytes  # a copy in fp32 alone would be twice the weights
    logits, cache = prefill(model, 8)
    assert logits.isfinite().all() and memory.cache_bytes(cache).total == size.state_bytes


@pytest.mark.parametrize("name", ["float32", "torch.float32"])
def test_a_dtype_can_be_given_by_its_name(course, name):
    model, _ = models.load("tiny/mamba", dtype=name, device="cpu")
    assert model.dtype == torch.float32
    assert models.size("tiny/mamba", name) == models.size("tiny/mamba", torch.float32)
    assert models.fits("tiny/mamba", dtype=name) == models.fits("tiny/mamba", dtype=torch.float32)


@pytest.mark.parametrize("ask", [models.size, models.load, models.fits])
@pytest.mark.parametrize("dtype", ["bf16", "auto", None, 16, float, torch.int8, "int8", ["bfloat16"]])
def test_what_weights_cannot_be_in_is_one_sentence(ask, dtype):
    with pytest.raises(ValueError, match="Weights are in") as error:
        ask("tiny/mamba", dtype=dtype)
    sentence(error)


@pytest.mark.parametrize("ask", [models.load, models.fits])
@pytest.mark.parametrize("device", ["gpu", "cuda:63", "", "cuda:x", 63, 1.5, ["cuda"]])
def test_a_device_that_is_not_there_is_one_sentence(ask, device):
    with pytest.raises(ValueError) as error:
        ask("tiny/mamba", device=device)
    assert type(error.value).__name__ == "BadInput" and "choose" in sentence(error)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
@pytest.mark.parametrize("device", ["cuda", torch.device("cuda"), "cuda:0"])
def test_a_gpu_on_a_machine_without_one_is_one_sentence(device):
    with pytest.raises(ValueError, match="torch finds 0 GPUs") as error:
        models.load("tiny/mamba", device=device)
    sentence(error)


@pytest.mark.slow
@given(tokens=st.integers(2, 120), batch=st.integers(1, 4), name=st.sampled_from(models.TINY))
@settings(max_examples=12)
def test_cache_bytes_grow_with_tokens_and_rows_as_predicted(tokens, batch, name):
    held = memory.cache_bytes(prefill(shipped(name), tokens, batch)[1])
    size = models.size(name, torch.float32)
    assert held.kv == batch * tokens * size.kv_bytes_per_token
    assert held.conv + held.recurrent == batch * size.state_bytes


@pytest.mark.parametrize("name", models.TINY)
def test_cache_bytes_are_the_sum_over_layers_and_over_rows(name):
    cache = prefill(shipped(name), 20, 3)[1]
    layers = [memory.cache_bytes(SimpleNamespace(layers=[layer])) for layer in cache.layers]
    rows = [memory.cache_bytes(prefill(shipped(name), 20, batch)[1]) for batch in (1, 2)]
    for kind in ("kv", "conv", "recurrent", "total"):
        whole = getattr(memory.cache_bytes(cache), kind)
        assert whole == sum(getattr(layer, kind) for layer in layers) == sum(getattr(row, kind) for row in rows)


@functools.cache
def shipped(name: str):
    return models.load(name, dtype=torch.float32, device="cpu")[0]


def test_an_unknown_kind_of_weights_is_refused():
    with pytest.raises(ValueError, match="random") as error:
        models.load("mamba-130m", weights="radnom")
    assert sentence(error) == 'The weights are "trained" or "random", not \'radnom\'.'


# ----------------------------------------------------------------------------------------------------- trained weights


@pytest.mark.parametrize("name", models.TINY)
def test_the_shipped_models_load_and_fit_the_course(name):
    model, tokenizer = models.load(name, device="cpu")
    size = models.size(name)
    assert sum(p.numel() for p in model.parameters()) == size.total <= 2_000_000
    assert size.active <= size.total and (size.active < size.total) == (name not in ("tiny/mamba", "tiny/transformer"))
    assert not model.training and {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert tokenizer.pad_token_id != tokenizer.eos_token_id and len(tokenizer) == model.config.vocab_size
    logits, cache = prefill(model, 50)
    assert logits.isfinite().all()
    assert memory.cache_bytes(cache).total == 50 * size.kv_bytes_per_token + size.state_bytes


def test_loading_gives_the_weights_that_were_saved(course):
    saved = load_file(course / "mamba" / "model.safetensors")
    model, _ = models.load("tiny/mamba", device="cpu")
    assert saved and all(torch.equal(model.state_dict()[key], tensor) for key, tensor in saved.items())


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def unlink(folder):
    (folder / "model.safetensors").unlink()


def other_shape(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "state_size": 4}))


def edit(change):
    def damage(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "model.safetensors is damaged ("),
        (empty, "model.safetensors is damaged ("),
        (unlink, "model.safetensors is missing"),
        (other_shape, "mismatched keys, the first"),
        (
            edit(lambda t: t.pop("backbone.layers.1.mixer.A_log")),
            "(1 missing keys, the first backbone.layers.1.mixer.A_log",
        ),
        (edit(lambda t: t.update(extra=torch.zeros(2))), "(1 unexpected keys, the first extra)"),
        (lambda folder: (folder / "config.json").unlink(), "config.json is missing or not JSON"),
        (lambda folder: (folder / "config.json").write_text('{"model_'), "config.json is missing or not JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "mumba"}'),
            "config.json describes no model",
        ),
        (lambda folder: (folder / "config.json").write_text('["mamba"]'), "config.json is missing or not JSON"),
        (
            lambda folder: (folder / "config.json").write_text('{"model_type": "mamba", "hidden_size": "x"}'),
            "config.json describes no model",
        ),
        (lambda folder: shutil.rmtree(folder), "config.json is missing or not JSON"),
    ],
    ids=[
        "truncated",
        "empty",
        "no weights",
        "shape",
        "missing key",
        "extra key",
        "no config",
        "half config",
        "type",
        "list",
        "field",
        "all",
    ],
)
def test_a_damaged_checkpoint_is_named_with_what_restores_it(course, capfd, damage, says):
    damage(course / "mamba")
    with pytest.raises(models.DamagedCheckpoint) as error:
        models.load("tiny/mamba", device="cpu")
    text = sentence(error)
    assert says in text and str(course / "mamba") in text and "`git checkout -- data/tiny/mamba" in text
    assert not capfd.readouterr().err  # and nothing else: no report, no warning


def names_code(file, trap, **changes):
    """Let a JSON file name code beside it, for every Auto class; when it runs, it writes the file `trap`."""
    (file.parent / "own_code.py").write_text(f"open({str(trap)!r}, 'w').close()\n")
    kinds = ("AutoConfig", "AutoModel", "AutoModelForCausalLM")
    code = {kind: "own_code.Own" for kind in kinds} | {"AutoTokenizer": ["own_code.Own", "own_code.Own"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": code} | changes))


@pytest.mark.parametrize("weights", ["trained", "random"])
@pytest.mark.parametrize("known", [True, False])
def test_code_that_a_checkpoint_names_is_neither_asked_about_nor_run(course, tmp_path, monkeypatch, weights, known):
    monkeypatch.setattr("builtins.input", lambda *said: pytest.fail(f"asked: {said}"))
    folder, tokenizer, trap = course / "mamba", course / "tokenizer", tmp_path / "executed"
    shutil.copy(folder / "config.json", tokenizer)
    changes = {} if known else {"model_type": "own"}
    names_code(tokenizer / "config.json", trap, **changes)
    names_code(tokenizer / "tokenizer_config.json", trap, **({} if known else {"tokenizer_class": "OwnTokenizer"}))
    try:
        assert len(models.load("tiny/mamba", weights=weights, device="cpu")[1]) == 1024
    except models.DamagedCheckpoint as error:
        assert not known and ONE_SENTENCE.fullmatch(str(error))
    names_code(folder / "config.json", trap, **changes)
    if known:
        assert models.from_folder(folder, torch.bfloat16, torch.device("cpu")).config.model_type == "mamba"
    else:
        with pytest.raises(
            models.DamagedCheckpoint, match=r"names code of its own .auto_map., which is never"
        ) as error:
            models.from_folder(folder, torch.bfloat16, torch.device("cpu"))
        sentence(error)
    assert not trap.exists()


INSTEAD = ["pytorch_model.bin", "../elsewhere.safetensors", "/elsewhere.safetensors", "a/../../b.safetensors", "", 3]


@pytest.mark.parametrize("part", [*INSTEAD, ["model.safetensors"], None])
def test_an_index_that_names_anything_but_safetensors_beside_it_is_refused_before_torch_sees_it(course, part):
    folder = course / "mamba"
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(tensors, part)}))
    with pytest.raises(models.DamagedCheckpoint, match=r"index.json (names|is damaged)") as error:
        models.load("tiny/mamba", device="cpu")
    assert "weights_only" not in sentence(error)


@pytest.mark.parametrize("named", [False, True])
def test_pickled_weights_alone_are_refused_also_where_the_config_names_them(course, named):
    folder = course / "mamba"
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    if named:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"transformers_weights": "pytorch_model.bin"}))
    else:
        (folder / "model.safetensors").unlink()
    with pytest.raises(models.DamagedCheckpoint, match=r"other weights than|safetensors is missing") as error:
        models.load("tiny/mamba", device="cpu")
    sentence(error)


# These read no code: the settings of `generate`, and adapters for a model that is there.
WITHOUT_CODE = ("GenerationConfig", "PeftModel")
LOADS = ("from_pretrained", "from_config", "load_dataset", "pipeline")


def careless(source: str) -> list[str]:
    """The calls of a source that load something of a repository and leave it open whether its code may run."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        who, _, what = ast.unparse(call.func).rpartition(".")
        if what not in LOADS or who.split(".")[-1] in (*WITHOUT_CODE, "models"):  # models.from_config is the course's
            continue
        if who == "" and what == "from_config":  # the same, inside its module
            continue
        if call.args and ast.unparse(call.args[0]) == "None":  # a model of tensors that are there already
            continue
        said = [ast.unparse(word.value) for word in call.keywords if word.arg == "trust_remote_code"]
        if said != ["False"]:
            found.append(ast.unparse(call))
    return found


@pytest.mark.slow
def test_no_loading_call_of_the_project_lets_code_of_a_repository_run():
    assert careless("AutoTokenizer.from_pretrained(x)") and careless("datasets.load_dataset(x, trust_remote_code=yes)")
    root = files.ROOT
    sources = [file for part in ("shared", "scripts", "labs") for file in (root / part).rglob("*.py")]
    sources = {file.relative_to(root): file.read_text() for file in sources}
    for lab in (root / "labs").glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(lab, as_version=4).cells if cell.cell_type == "code"]
        sources[lab.name] = "\n".join(TransformerManager().transform_cell(cell) for cell in cells)
    assert sum("from_pretrained" in source for source in sources.values()) > 5
    assert {str(where): calls for where, source in sources.items() if (calls := careless(source))} == {}


def test_a_missing_tokenizer_is_an_error_for_trained_weights(course):
    shutil.rmtree(course / "tokenizer")
    with pytest.raises(models.DamagedCheckpoint, match=r"tokenizer.json is missing: `git checkout"):
        models.load("tiny/mamba", device="cpu")
    assert models.load("tiny/mamba", weights="random", device="cpu")[1] is None


# ------------------------------------------------------------------------------------------------ context and scan path


def test_a_context_beyond_the_models_positions_is_refused(course):
    model, _ = models.load("tiny/transformer", device="cpu")
    models.check_context(model, 256)
    with pytest.raises(models.ContextTooLong) as error:
        models.check_context(model, 1000)
    assert "has 256 positions and 1,000 tokens were asked for" in sentence(error)
    models.check_context(models.load("tiny/mamba", device="cpu")[0], 10**9)


@pytest.mark.slow
def test_path_says_which_scan_runs(course):
    loaded = {name: models.load(f"tiny/{name}", device="cpu")[0] for name in ("mamba", "jamba", "transformer")}
    assert {name: models.path(model) for name, model in loaded.items()} == {
        "mamba": "reference",
        "jamba": "reference",
        "transformer": "no scan",
    }
    with scan.in_transformers():
        assert models.path(loaded["mamba"]) == models.path(loaded["jamba"]) == "course"


@pytest.mark.slow
def test_a_notebook_shows_one_sentence_and_no_frames():
    code = (
        "from IPython.core.interactiveshell import InteractiveShell\n"
        "shell = InteractiveShell.instance(colors='NoColor')\n"
        "shell.run_cell('from shared import models; models.size(\"mamba-3b\")')\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = (shown.stdout + shown.stderr).strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith(
        "BadInput: There is no model 'mamba-3b': the closest is 'mamba-2.8b'"
    )


# ------------------------------------------------------------------------------------------------------ giving it back


@pytest.mark.slow
def test_unload_frees_every_loaded_model_also_where_a_variable_or_a_layer_of_it_is_kept(course):
    before = memory.held()
    kept = {name: models.load(f"tiny/{name}", device="cpu")[0] for name in SMALL}
    layer = kept["mamba"].backbone.layers[0]
    models.load("tiny/olmoe", device="cpu")  # which nothing names
    weights = sum(models.size(f"tiny/{name}").weight_bytes for name in SMALL)
    assert memory.held() - before >= weights
    assert models.unload() >= weights
    assert memory.held() - before < 0.1 * weights  # buffers that are computed, such as rotary frequencies
    assert all(p.is_meta for p in layer.parameters()) and models.unload() == 0
    ids = torch.tensor([[5, 6, 7]])
    calls = (
        lambda: kept["olmoe"](ids),
        lambda: layer(torch.zeros(1, 3, 32)),
        lambda: kept["mamba"].generate(ids, max_new_tokens=2),
    )
    for call in calls:
        with pytest.raises(models.Missing, match=r"given back .*: run the cell that loads it again\.$") as stopped:
            call()
        sentence(stopped)
    again, _ = models.load("tiny/mamba", device="cpu")
    assert prefill(again, 4)[0].isfinite().all()


@pytest.mark.slow
def test_held_counts_memory_and_not_names():
    before = memory.held()
    block = torch.ones(1_000_000)
    views = [block[:10], block.view(1000, 1000)]
    assert memory.held() - before == 4_000_000 and len(views) == 2
    del block, views
    assert memory.held() == before
