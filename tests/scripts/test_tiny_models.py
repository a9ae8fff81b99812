"""What data/tiny ships keeps its claims, measured on the files as shipped and on text that no model was trained on."""

import json
import math
import random
import subprocess
import sys
from collections import Counter

import claims
import numpy as np
import pytest
import torch
import train
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from shared.files import ROOT

pytestmark = pytest.mark.slow

TINY = ROOT / "data/tiny"

NAMES = tuple(train.RECIPES)
MOE = ("olmoe", "olmoe-collapsed", "deepseek-moe", "jamba")


@pytest.fixture(scope="module")
def tokenizer():
    return train.load_tokenizer(TINY / "tokenizer")


@pytest.fixture(scope="module")
def texts():
    return {split: train.documents(split, TINY / "text") for split in ("train", "heldout")}


@pytest.fixture(scope="module")
def ids(tokenizer, texts):
    return {split: tokenizer([text for _, text in found])["input_ids"] for split, found in texts.items()}


@pytest.fixture(scope="module")
def trigram(ids):
    return claims.Trigram(ids["train"])


@pytest.fixture(scope="module")
def classifier(texts):
    return claims.DomainClassifier(texts["train"])


@pytest.fixture(scope="module")
def measured(tokenizer, texts, classifier):
    """What each checkpoint shows on the held-out split, measured once and now."""
    found = {}

    def measure(name):
        if name not in found:
            found[name] = claims.measure(TINY / name, tokenizer, texts["heldout"], classifier)
        return found[name]

    return measure


# ---- the claims --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_model_beats_the_trigram_model_of_its_tokens_by_15_percent(name, measured, trigram, ids, texts):
    baseline = claims.bits_per_byte(trigram.document_nll(ids["heldout"]), texts["heldout"])["overall"]
    assert measured(name)["bits_per_byte"]["overall"] <= 0.85 * baseline


@pytest.mark.parametrize("name", NAMES)
def test_greedy_text_stays_in_the_domain_of_its_prompt(name, measured):
    kept = measured(name)["stays_in_domain"]
    assert set(kept) == set(train.DOMAINS)
    assert min(kept.values()) > 0.5, kept


def test_olmoe_uses_every_expert_in_every_layer(measured):
    for layer in measured("olmoe")["experts"]:
        assert len(layer["load"]) == 16
        assert min(layer["load"]) >= 0.25, layer["load"]


def test_experts_of_olmoe_depend_on_the_domain_more_than_chance(measured):
    layers = measured("olmoe")["experts"]
    above = [layer["mutual_information"] > layer["null_99th_percentile"] for layer in layers]
    assert sum(above) >= 0.75 * len(layers)


def test_collapsed_olmoe_has_dead_experts(measured):
    dead = [sum(load < 0.05 for load in layer["load"]) for layer in measured("olmoe-collapsed")["experts"]]
    assert max(dead) >= 3, dead


def test_collapse_comes_from_training_not_from_initialisation(ids):
    torch.manual_seed(train.SEED)
    fresh = AutoModelForCausalLM.from_config(train.RECIPES["olmoe-collapsed"].config).eval()
    for load in claims.dispatch(fresh, ids["heldout"][::4]).load():
        assert load.min() >= 0.05, load


def test_collapsed_olmoe_has_the_shapes_of_olmoe_and_weights_that_no_one_zeroed():
    shapes, largest = {}, {}
    for name in ("olmoe", "olmoe-collapsed"):
        state = train.load(TINY / name).state_dict()
        shapes[name] = {key: value.shape for key, value in state.items()}
        largest[name] = min(
            expert.abs().max().item() for key, value in state.items() if "experts." in key for expert in value
        )
    assert shapes["olmoe"] == shapes["olmoe-collapsed"]
    assert largest["olmoe-collapsed"] > 0.01


def test_deepseek_moe_ships_in_the_published_layout_without_code():
    config = json.loads((TINY / "deepseek-moe/config.json").read_text())
    assert config["model_type"] == "deepseek" and "auto_map" not in config
    assert not list((TINY / "deepseek-moe").glob("*.py"))
    with safe_open(TINY / "deepseek-moe/model.safetensors", "pt") as file:
        names = set(file.keys())
    last = config["n_routed_experts"] - 1
    expected = {"0.mlp.gate_proj", f"1.mlp.experts.{last}.down_proj", "1.mlp.gate", "1.mlp.shared_experts.up_proj"}
    assert {f"model.layers.{name}.weight" for name in expected} <= names
    assert not any("gate_up_proj" in name for name in names)


def test_report_says_what_is_measured_now(measured):
    report = json.loads((TINY / "report.json").read_text())["models"]
    assert tuple(report) == NAMES
    for name in NAMES:
        now, then = measured(name)["bits_per_byte"]["overall"], report[name]["bits_per_byte"]["overall"]
        assert now == pytest.approx(then, rel=0.01), name


# ---- files -------------------------------------------------------------------------------------------------------


def test_checkpoints_are_small_bfloat16_files():
    sizes = {name: (TINY / name / "model.safetensors").stat().st_size for name in NAMES}
    assert max(sizes.values()) <= 4e6 and sum(sizes.values()) <= 14e6, sizes
    for name in NAMES:
        with safe_open(TINY / name / "model.safetensors", "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"BF16"}  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_config_fits_the_tokenizer_and_the_course(name, tokenizer):
    model = train.load(TINY / name)
    config = model.config
    assert train.parameters(model) <= 2_000_000
    assert config.vocab_size == len(tokenizer) == 1024
    assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id == config.eos_token_id
    assert config.bos_token_id == tokenizer.bos_token_id
    assert name == "mamba" or config.max_position_embeddings == 8192


def test_mamba_and_transformer_are_twins():
    mamba, transformer = (train.parameters(train.load(TINY / name)) for name in ("mamba", "transformer"))
    assert abs(mamba / transformer - 1) <= 0.03


def test_jamba_is_a_hybrid_of_mamba_attention_and_experts():
    config = train.load(TINY / "jamba").config
    assert set(config.layers_block_type) == {"mamba", "attention"}
    assert {1, config.num_experts} == set(config.layers_num_experts)


def test_bfloat16_arithmetic_shows_the_same_as_float32(tokenizer, texts, ids):
    some, documents = texts["heldout"][::8], ids["heldout"][::8]
    for name in ("transformer", "jamba"):
        with train.in_transformers():
            nll = [claims.document_nll(train.load(TINY / name, d), documents) for d in (torch.float32, torch.bfloat16)]
        exact, rounded = (claims.bits_per_byte(values, some)["overall"] for values in nll)
        assert rounded == pytest.approx(exact, rel=0.02), name


# ---- tokenizer and batches ---------------------------------------------------------------------------------------

STRANGE = [
    "naïve œuvre – ça",
    "数学 🧮 \U0001f9ec",
    "\t \r\n  trailing ",
    "".join(map(chr, range(1, 384))),
    "İ̇ ﷽ \u200d",
]


def test_tokenizer_returns_every_text_exactly(tokenizer, texts):
    for text in [*STRANGE, *(text for _, text in texts["heldout"])]:
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_tokenizer_adds_no_special_tokens(tokenizer, ids):
    assert not {tokenizer.pad_token_id, tokenizer.eos_token_id} & {
        token for document in ids["heldout"] for token in document
    }


def test_batches_are_the_same_for_every_model_and_cover_the_documents_in_order():
    documents = [[10 * n + 2, 10 * n + 3, 10 * n + 4] for n in range(400)]
    first, again = (list(train.batches(documents, 3, size=2)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    windows = torch.cat(first)
    assert torch.equal(windows[1:, 0], windows[:-1, -1]), "a window ends with the token that the next one starts with"
    stream = torch.cat([windows[:, :-1].flatten(), windows[-1, -1:]]).tolist()
    assert stream[0] == 1
    read = [stream[i : i + 4] for i in range(1, len(stream) - 4, 4)]
    assert all(document[-1] == 1 and document[:-1] in documents for document in read)
    assert [document[:-1] for document in read[:5]] != documents[:5], "not shuffled"


# ---- the measures themselves -------------------------------------------------------------------------------------


def test_trigram_probabilities_sum_to_one(trigram):
    context = [700, 701]  # any two; the sum over all next tokens must be one
    for a, b in (context, [300, 42], [5, 900]):
        last = [[a, b, c] for c in range(1024)]
        terms = trigram._terms(last)
        third = np.exp(trigram._logs(terms)).reshape(1024, 4)[:, 2]
        assert third.sum() == pytest.approx(1, abs=1e-9)


def test_trigram_is_at_least_as_strong_as_tuned_linear_interpolation(trigram, ids):
    counts = [Counter(), Counter(), Counter()]
    for document in ids["train"]:
        stream = (1, 1, *document, 1)
        for i in range(2, len(stream)):
            for order in range(3):
                counts[order][stream[i - order : i + 1]] += 1
    above = [Counter(), Counter(), Counter()]
    for order in range(3):
        for gram, count in counts[order].items():
            above[order][gram[:-1]] += count
    rows = []
    for document in ids["heldout"]:
        stream = (1, 1, *document, 1)
        for i in range(2, len(stream)):
            grams = [stream[i - order : i + 1] for order in range(3)]
            rows.append([1 / 1024] + [c[g] / max(1, a[g[:-1]]) for c, a, g in zip(counts, above, grams, strict=True)])
    p, weights = np.array(rows), np.full(4, 0.25)
    for _ in range(30):  # expectation maximisation, on the held-out text itself: more than fair
        posterior = p * weights
        weights = (posterior / posterior.sum(1, keepdims=True)).mean(0)
    linear = -np.log(p @ weights).sum()
    assert trigram.document_nll(ids["heldout"]).sum() <= linear


def test_nll_scores_every_token_of_a_long_document_once():
    class Uniform(torch.nn.Module):
        def forward(self, ids, use_cache):
            assert ids.shape[1] <= train.WINDOW
            return type("Output", (), {"logits": torch.zeros(*ids.shape, 1024)})

    lengths = [1, 255, 256, 257, 700]
    nll = claims.document_nll(Uniform(), [[7] * length for length in lengths], batch=2)
    np.testing.assert_allclose(nll, [(length + 1) * math.log(1024) for length in lengths], rtol=1e-6)


def test_classifier_knows_heldout_text_and_shuffled_labels_teach_it_nothing(texts, classifier):
    halves = [(name, text[len(text) // 2 :]) for name, text in texts["heldout"]]
    right = np.mean([classifier(text) == name for name, text in halves])
    assert right >= 0.95
    names = [name for name, _ in texts["train"]]
    random.Random(0).shuffle(names)
    fooled = claims.DomainClassifier([(name, text) for name, (_, text) in zip(names, texts["train"], strict=True)])
    assert np.mean([fooled(text) == name for name, text in halves]) <= 2 / len(train.DOMAINS)
    assert classifier("") is None


def test_mutual_information_of_known_tables():
    labels = np.repeat(np.arange(7), 10)
    assert claims.mutual_information(np.ones((70, 16)), labels) == pytest.approx(0, abs=1e-12)
    assert claims.mutual_information(np.eye(7)[labels], labels) == pytest.approx(math.log(7))


def test_documents_with_habits_but_no_domain_effect_stay_within_the_null():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(7), 10)
    habits = rng.dirichlet(np.ones(16), 70) * 1000  # each document its own mixture, whatever its domain
    information, null = claims.specialisation(habits, labels)
    assert information < null
    by_token = 124 / (2 * habits.sum())  # chi-square, 90 degrees of freedom, 99th percentile
    assert information > 10 * by_token, "with tokens as the unit, noise would pass for an effect"


def test_dispatch_counts_every_real_token_and_no_padding(ids):
    model = train.load(TINY / "olmoe")
    documents = sorted(ids["heldout"][:6], key=len)
    together, alone = claims.dispatch(model, documents), [claims.dispatch(model, [document]) for document in documents]
    for layer, counts in enumerate(together.counts):
        expected = [2 * len([1, *document][: train.WINDOW]) for document in documents]
        assert counts.sum(1).tolist() == expected
        np.testing.assert_array_equal(counts, np.concatenate([one.counts[layer] for one in alone]))


def test_balancing_loss_is_one_at_balance_and_sees_what_pooling_hides():
    def on(experts):  # 64 tokens that go evenly to these experts of 8
        logits = torch.full((64, 8), -20.0)
        logits[torch.arange(64), torch.tensor(experts).repeat(64)[:64]] = 20.0
        return logits

    assert train.balancing_loss(on(range(8)), 1).item() == pytest.approx(1, abs=1e-4)
    assert train.balancing_loss(on([3]), 1).item() == pytest.approx(8, abs=1e-4)
    halves = on(range(4)), on(range(4, 8))
    assert [train.balancing_loss(half, 1).item() for half in halves] == pytest.approx([2, 2], abs=1e-4)
    assert train.balancing_loss(torch.cat(halves), 1).item() == pytest.approx(1, abs=1e-4), "pooled, it looks perfect"


# ---- building ----------------------------------------------------------------------------------------------------


def test_a_short_build_learns_reports_and_repeats_the_shipped_tokenizer(tmp_path):
    leftover = tmp_path / ".building-transformer"
    leftover.mkdir()
    (leftover / "model.safetensors").write_text("of a run that was stopped")
    program = ROOT / "scripts" / "tiny" / "build.py"
    command = [sys.executable, program, "--only", "transformer", "--steps", "60", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "60/60" in done.stderr and "transformer" in done.stdout
    entry = json.loads((tmp_path / "report.json").read_text())["models"]["transformer"]
    losses = [loss for _, loss in entry["loss_curve_nats_per_token"]]
    assert losses[-1] < losses[0] - 1
    assert entry["bits_per_byte"]["overall"] > 0
    assert (tmp_path / "tokenizer/tokenizer.json").read_bytes() == (TINY / "tokenizer/tokenizer.json").read_bytes()
    assert not list(tmp_path.glob(".building*"))


def test_two_runs_with_one_seed_agree_and_another_seed_differs(ids):
    def weights(seed):
        trained = train.fit(train.RECIPES["olmoe"], ids["train"][:200], 4, seed=seed, bar={"disable": True})
        return torch.cat([p.detach().flatten() for p in trained.model.parameters()])

    first = weights(1)
    assert torch.allclose(first, weights(1), atol=1e-6)
    assert not torch.allclose(first, weights(2), atol=1e-3)
