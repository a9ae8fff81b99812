"""Perplexity scores every token once, in the harness's windows, in any batches, streamed, carried, and in any number of
processes."""

import copy
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import time
import tracemalloc
from types import SimpleNamespace
from unittest.mock import patch

import evaluate as program
import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, BambaConfig, RwkvConfig

from shared import data, evaluate, files, memory, models, scan
from shared.errors import BadInput, ContextTooLong

NAMES = ("mamba", "transformer", "olmoe", "deepseek-moe", "jamba")


@pytest.fixture(scope="module")
def zoo():
    return {name: models.load(f"tiny/{name}", dtype=torch.float32, device="cpu") for name in NAMES}


@pytest.fixture(scope="module")
def documents() -> list[str]:
    """A few of each kind, of different lengths, French accents among them."""
    kept = [d for text in data.tiny_text("heldout").values() for d in text.split("\n\n")[:3]]
    assert any(len(d.encode()) > len(d) for d in kept)
    return kept


# ---- an independent loop, after the harness ------------------------------------------------------------------------


def rolling(tokens: list[int], prefix: int, window: int, context: int) -> list[tuple[list[int], list[int]]]:
    """(what is read, what it predicts), as lm-evaluation-harness 0.4.13 makes them: rolling windows with at least
    `context` tokens of context, then made disjoint: of what is read the end that predicts what is new."""
    per_window = window - context + 1
    pairs, done = [], 0
    while done < len(tokens):
        new = min(window if not done else per_window, len(tokens) - done)
        end = done + new
        read = [prefix, *tokens][max(0, end - window) : end]
        pairs.append((read, tokens[done:end]))
        done = end
    return pairs


@torch.no_grad()
def plain_loop(model, tokenizer, text: str, window: int, context: int = 1) -> float:
    """Nats of a text, one window at a time, log-softmax over every position."""
    total = 0.0
    for read, predicted in rolling(tokenizer(text).input_ids, tokenizer.bos_token_id, window, context):
        logits = F.log_softmax(model(torch.tensor([read]), use_cache=False).logits[0].double(), -1)
        rows = logits[len(logits) - len(predicted) :]
        total -= rows.gather(1, torch.tensor(predicted)[:, None]).sum().item()
    return total


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_equals_the_harness_windows_in_a_plain_loop(zoo, documents, name):
    model, tokenizer = zoo[name]
    texts = documents[::4]
    with scan.in_transformers():
        expected = [plain_loop(model, tokenizer, text, 64) for text in texts]
    found = evaluate.perplexity(model, tokenizer, texts, window=64)
    assert [d.nll for d in found.documents] == pytest.approx(expected, rel=1e-6)
    assert found.nll == pytest.approx(sum(expected), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("stride", [1, 7, 16, 31])
def test_a_shorter_stride_is_the_harness_with_more_context(zoo, documents, stride):
    model, tokenizer = zoo["transformer"]
    text = max(documents, key=len)
    found = evaluate.perplexity(model, tokenizer, [text], window=32, stride=stride)
    assert found.nll == pytest.approx(plain_loop(model, tokenizer, text, 32, context=32 - stride + 1), rel=1e-6)


def test_it_agrees_with_the_library_s_own_loss_where_one_window_holds_the_text(zoo, documents):
    model, tokenizer = zoo["jamba"]
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(documents[0]).input_ids]])
    with torch.no_grad(), scan.in_transformers():
        loss = model(ids, labels=ids, use_cache=False).loss.item() * (ids.shape[1] - 1)
    assert evaluate.perplexity(model, tokenizer, documents[:1], 512).nll == pytest.approx(loss, rel=1e-6)


# ---- accounting ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [0, 1, 2, 7, 8, 9, 15, 16, 17, 40, 41])
@pytest.mark.parametrize(("window", "stride"), [(8, 8), (8, 3), (8, 1), (1, 1), (40, 7)])
@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_every_token_is_scored_exactly_once(tokens, window, stride, pieces):
    ids = list(range(100, 101 + tokens))
    cut = [ids[i : i + pieces] for i in range(0, len(ids), pieces)] if pieces > 1 else [ids]
    parts = list(evaluate._windows(0, iter(cut), window, stride, carry=False))
    assert [t for p in parts for t in p.ids[p.first + 1 :]] == ids[1:]
    for part in parts:
        assert part.ids == ids[part.start : part.start + len(part.ids)]
        assert len(part.ids) - 1 == min(window, tokens)  # as long as the window: the last one reaches back
        assert 0 < len(part.ids) - 1 - part.first <= (window if part is parts[0] else stride)


@pytest.mark.slow
@given(
    tokens=st.integers(0, 60),
    window=st.integers(1, 20),
    shorter=st.integers(0, 19),
    cuts=st.lists(st.integers(0, 60), max_size=5),
    carry=st.booleans(),
)
def test_windows_of_any_size_partition_the_tokens(tokens, window, shorter, cuts, carry):
    stride = window if carry else max(1, window - shorter)
    ids = list(range(tokens + 1))
    ends = sorted({1, *(cut for cut in cuts if 0 < cut <= tokens), tokens + 1})
    pieces = [ids[start:end] for start, end in itertools.pairwise([0, *ends])]
    parts = list(evaluate._windows(0, iter(pieces), window, stride, carry))
    assert [token for part in parts for token in part.ids[part.first + 1 :]] == ids[1:]
    assert all(part.ids == ids[part.start : part.start + len(part.ids)] for part in parts)
    assert all(len(part.ids) <= window + 1 for part in parts)


def test_sums_words_and_bytes_are_those_of_the_texts(zoo, documents):
    model, tokenizer = zoo["transformer"]
    found = evaluate.perplexity(model, tokenizer, [*documents, ""], window=128)
    assert found.tokens == sum(len(tokenizer(d).input_ids) for d in documents)
    assert found.words == sum(len(d.split()) for d in documents)
    assert found.bytes == sum(len(d.encode()) for d in documents) > sum(map(len, documents))
    assert len(found.documents) == len(documents) + 1 and found.documents[-1] == evaluate.Document(0.0, 0, 0, 0)
    assert found.token_perplexity == pytest.approx(math.exp(found.nll / found.tokens))
    assert found.word_perplexity == pytest.approx(math.exp(found.nll / found.words))
    assert found.bits_per_byte == pytest.approx(found.nll / math.log(2) / found.bytes)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(zoo, documents):
    _, tokenizer = zoo["transformer"]
    uniform, _ = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
    with torch.no_grad():
        uniform.get_output_embeddings().weight.zero_()
    found = evaluate.perplexity(uniform, tokenizer, documents, window=32, stride=9)
    assert found.token_perplexity == pytest.approx(1024, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 64, 100_000])
def test_batches_and_padding_change_nothing(zoo, documents, batch, monkeypatch):
    model, tokenizer = zoo["olmoe"]
    before = evaluate.perplexity(model, tokenizer, documents, window=48, stride=20)
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", batch)
    after = evaluate.perplexity(model, tokenizer, documents, window=48, stride=20)
    assert [d.nll for d in after.documents] == pytest.approx([d.nll for d in before.documents], rel=1e-6)


def test_nats_of_each_token_add_up_and_say_what_was_seen_before(zoo, documents):
    model, tokenizer = zoo["transformer"]
    text = max(documents, key=len)
    nats, before = evaluate.token_nll(model, tokenizer, text, window=32, stride=8)
    whole = evaluate.perplexity(model, tokenizer, [text], window=32, stride=8)
    assert len(nats) == len(before) == whole.tokens and nats.sum().item() == pytest.approx(whole.nll, rel=1e-12)
    assert before[:32].tolist() == list(range(1, 33)) and set(before[32:-8].tolist()) == set(range(25, 33))
    assert evaluate.token_nll(*zoo["mamba"], text, window=32, carry=True)[1].tolist() == list(range(1, len(nats) + 1))


# ---- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_streamed_text_has_the_tokens_of_the_whole(zoo, monkeypatch):
    model, tokenizer = zoo["transformer"]
    text = "\n\n".join(data.tiny_text("heldout").values())[:20_000] + "  two  spaces \n\n end\n"
    whole = evaluate.perplexity(model, tokenizer, [text], window=256)
    for size, cut in ((50, 1), (997, 64), (10**9, 4096)):
        monkeypatch.setattr(evaluate, "PIECE", size)
        assert "".join(evaluate._pieces(text[i : i + cut] for i in range(0, len(text), cut))) == text
        stream = (text[i : i + cut] for i in range(0, len(text), cut))
        found = evaluate.perplexity(model, tokenizer, [stream], window=256)
        assert (found.tokens, found.words, found.bytes) == (whole.tokens, whole.words, whole.bytes)
        assert found.nll == pytest.approx(whole.nll, rel=1e-6)


@pytest.mark.slow
def test_a_stream_is_read_as_it_is_scored():
    """A text of 6 MB that exists nowhere as a whole: what is held stays small."""

    class Words:
        bos_token_id = eos_token_id = 1

        def __call__(self, text, **options):
            return SimpleNamespace(input_ids=[3] * len(text.split()))

    reader = evaluate._Reader(Words(), (" a word and another" for _ in range(300_000)))
    tracemalloc.start()
    scored = sum(len(p.ids) - 1 - p.first for p in evaluate._windows(0, reader, 512, 128, carry=False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert scored == reader.tokens == 4 * 300_000 and reader.bytes > 5e6
    assert peak < 2e6


@given(cuts=st.sets(st.integers(1, 299), max_size=6), size=st.integers(20, 400))
@settings(max_examples=8)
def test_a_text_has_the_same_nats_however_it_is_cut(zoo, cuts, size):
    model, tokenizer = zoo["transformer"]
    text = data.tiny_long_text()[:300]
    parts = [text[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), 300])]
    with patch.object(evaluate, "PIECE", size):
        found = evaluate.perplexity(model, tokenizer, [parts], 32, 20)
    assert found == evaluate.perplexity(model, tokenizer, [text], 32, 20)


WORDS = ["and", "then", "there", "is", "the", "third", "of", "1,000", "words:", "it's"]


@pytest.mark.parametrize(
    "between", ["\n", "\n\n", "\t", "  ", "\r\n", ".\n", ". ", ",", "，", " é\n"], ids=lambda between: repr(between)
)
def test_pieces_are_of_bounded_size_and_have_the_tokens_of_the_whole(zoo, between, monkeypatch):
    monkeypatch.setattr(evaluate, "PIECE", 100)
    _, tokenizer = zoo["transformer"]
    parts = [word + between for word in WORDS * 40]
    pieces = list(evaluate._pieces(parts))
    assert "".join(pieces) == "".join(parts)
    assert max(map(len, pieces)) <= 200 and min(map(len, pieces[:-1])) >= 100
    assert [i for piece in pieces for i in tokenizer(piece).input_ids] == tokenizer("".join(parts)).input_ids


def test_a_run_without_a_boundary_is_cut_where_it_is_too_long(monkeypatch):
    monkeypatch.setattr(evaluate, "PIECE", 100)
    assert list(map(len, evaluate._pieces(["x"] * 450))) == [200, 200, 50]


def test_one_word_a_line_takes_no_longer_than_a_word_after_a_space():
    """The time of a line does not grow with the lines before it."""
    start = time.process_time()
    sizes = [len(piece) for piece in evaluate._pieces("word\n" for _ in range(400_000))]
    assert time.process_time() - start < 2 and max(sizes) <= 2 * evaluate.PIECE and sum(sizes) == 2_000_000


@pytest.mark.slow
@given(
    words=st.lists(st.text(min_size=1, max_size=9), max_size=40),
    between=st.sampled_from([" ", "\n", "\n\n", ", "]),
    size=st.integers(1, 30),
)
def test_any_text_comes_in_pieces_as_it_is(words, between, size):
    parts = [word + between for word in words]
    with patch.object(evaluate, "PIECE", size):
        pieces = list(evaluate._pieces(parts))
    assert "".join(pieces) == "".join(parts) and all(0 < len(piece) <= 2 * size for piece in pieces)


# ---- carried -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mamba", "jamba", "transformer"])
@pytest.mark.parametrize("window", [1000, 193, 17])
def test_carrying_the_cache_equals_one_pass(zoo, name, window):
    model, tokenizer = zoo[name]
    text = data.tiny_long_text()[:2400]
    once = evaluate.perplexity(model, tokenizer, [text], window=2000)
    carried = evaluate.perplexity(model, tokenizer, [text], window=window, carry=True)
    assert once.tokens < 1000 and carried.tokens == once.tokens
    assert carried.nll == pytest.approx(once.nll, rel=1e-5)


@pytest.mark.slow
def test_75_000_tokens_cost_mamba_constant_memory(zoo, monkeypatch):
    model, tokenizer = zoo["mamba"]
    text = "\n\n".join(data.tiny_text("train").values())
    text = text[: text.index("\n\n", 200_000)]
    kept, forward = [], models.forward

    def watched(*arguments, **options):
        logits, cache = forward(*arguments, **options)
        if cache is not None:  # what the first windows give at once, to compare with, leaves none
            kept.append(memory.cache_bytes(cache).total)
        return logits, cache

    monkeypatch.setattr(models, "forward", watched)
    with memory.track("cpu") as tracked:
        tracked.mark("first part")
        evaluate.perplexity(model, tokenizer, [text[:12_000]], window=1024, carry=True)
        tracked.mark("all")
        found = evaluate.perplexity(model, tokenizer, [iter([text])], window=1024, carry=True)
    assert found.tokens >= 75_000 and len(kept) > 75
    assert set(kept) == {models.size("tiny/mamba", torch.float32).state_bytes}
    peaks = tracked.phases()
    assert peaks["all"] - peaks["first part"] < 30e6  # a tenth of what the logits of one pass alone would take
    assert 0.1 < found.bits_per_byte < 1


@pytest.mark.slow
def test_a_dropped_state_would_show(zoo):
    """A negative control: outside in_transformers the library's Mamba forgets the state between windows."""
    model, tokenizer = zoo["mamba"]
    ids = torch.tensor([[1, *tokenizer(data.tiny_long_text()[:1400]).input_ids]])

    @torch.inference_mode()
    def nats(size: int) -> float:
        total, cache = 0.0, None
        for start in range(0, ids.shape[1] - 1, size):
            part = ids[:, start : start + size + 1]
            logits, cache = models.forward(model, part[:, :-1], cache, keep=part.shape[1] - 1)
            total += F.cross_entropy(logits[0], part[0, 1:], reduction="sum").item()
        return total

    once = nats(ids.shape[1])
    with scan.in_transformers():
        assert nats(8) == pytest.approx(once, rel=1e-5)
    assert nats(8) > 1.03 * once


# ---- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("window", "stride"), [(0, None), (8, 0), (8, 9), (-1, -1)])
def test_an_impossible_window_is_one_sentence(zoo, window, stride):
    with pytest.raises(BadInput, match="1 <= stride <= window"):
        evaluate.perplexity(*zoo["mamba"], ["text"], window, stride)


@pytest.mark.parametrize("wrong", ["8", 8.0, 2.5, True, math.nan, [8]])
def test_a_window_or_stride_that_is_no_whole_number_is_one_sentence(zoo, wrong):
    for window, stride in ((wrong, None), (8, wrong)):
        with pytest.raises(BadInput, match=r"^A (window|stride), in tokens, is a whole number, not [^\n]*\.$"):
            evaluate.perplexity(*zoo["transformer"], ["text"], window, stride)


@pytest.mark.parametrize("score", [evaluate.perplexity, evaluate.token_nll])
def test_what_is_no_model_or_tokenizer_is_one_sentence(zoo, score):
    model, tokenizer = zoo["transformer"]
    for wrong in (None, "tiny/transformer", tokenizer):
        with pytest.raises(BadInput, match=r"^A model is what models\.load gives, not "):
            score(wrong, tokenizer, "text", 8)
    for wrong in ("tiny/transformer", type(tokenizer), model):
        with pytest.raises(BadInput, match=r"^A tokenizer is what models\.load gives beside a model, not "):
            score(model, wrong, "text", 8)


def test_a_model_that_trains_is_scored_without_dropout_and_trains_on(zoo):
    _, tokenizer = zoo["transformer"]
    model, _ = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    expected = evaluate.perplexity(model, tokenizer, ["some text"], 8)
    model.train()
    model.get_output_embeddings().eval()
    assert evaluate.perplexity(model, tokenizer, ["some text"], 8) == expected
    assert model.training and not model.get_output_embeddings().training


@pytest.mark.slow
def test_other_impossible_requests_are_one_sentence(zoo):
    model, tokenizer = zoo["transformer"]
    with pytest.raises(BadInput, match="no text to score"):
        evaluate.perplexity(model, tokenizer, ["", ""], 8)
    with pytest.raises(BadInput, match="no text to score"):
        evaluate.perplexity(model, tokenizer, [], 8)
    with pytest.raises(BadInput, match="tokenizer"):
        evaluate.perplexity(model, None, ["text"], 8)
    with pytest.raises(BadInput, match="leave the stride out"):
        evaluate.perplexity(model, tokenizer, ["text"], 8, 4, carry=True)
    with pytest.raises(ContextTooLong, match="8,192 positions"):
        evaluate.perplexity(model, tokenizer, ["text"], 9000)
    with pytest.raises(ContextTooLong, match="8,192 positions"):
        evaluate.perplexity(model, tokenizer, [data.tiny_long_text()], 4096, carry=True)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"a": "text"}, "The documents are of type dict"),
        (None, "The documents are None"),
        (b"text", "The documents are of type bytes"),
        (7, "The documents are of type int"),
        (np.array("text"), "The documents are of type ndarray"),
        (["text", np.array("text")], "Document 1 is of type ndarray"),
        (["text", pd.DataFrame({"text": ["text"]})], "Document 1 is of type DataFrame"),
        (pd.DataFrame({"text": ["text"]}), "The documents are of type DataFrame"),
        (["text", {"text": "text"}], "Document 1 is of type dict"),
        (["text", None], "Document 1 is None"),
        (["text", float("nan")], "Document 1 is of type float"),
        (["text", b"text"], "Document 1 is of type bytes"),
        (["text", "fine \ud83d"], r"Document 1 has a lone surrogate, '\\ud83d', at character 5"),
        (["text", ["fine", b"text"]], "Part 1 of document 1 is of type bytes"),
        (["text", [5, 6]], "Part 0 of document 1 is of type int"),
        (["text", ["fine", "\udcff"]], "Document 1 has a lone surrogate"),
    ],
)
@pytest.mark.parametrize("carry", [False, True])
def test_a_document_that_is_no_text_is_named(zoo, texts, said, carry):
    with pytest.raises(BadInput, match=f"^{said}[^\n]*$"):
        evaluate.perplexity(*zoo["transformer"], texts, 8, carry=carry)


@pytest.mark.parametrize("text", [None, b"text", {"a": "text"}, "\ud83d", [3]])
def test_the_one_text_of_token_nll_is_looked_at_too(zoo, text):
    with pytest.raises(BadInput, match="ocument 0"):
        evaluate.token_nll(*zoo["transformer"], text, 8)


def test_strings_in_any_sequence_are_documents(zoo):
    texts = ["one text", "another text"]
    expected = evaluate.perplexity(*zoo["transformer"], texts, 8)
    for same in (tuple(texts), iter(texts), pd.Series(texts), np.array(texts), dict(enumerate(texts)).values()):
        assert evaluate.perplexity(*zoo["transformer"], same, 8) == expected


def test_a_tokenizer_without_a_token_to_start_with_is_one_sentence(zoo):
    model, tokenizer = zoo["transformer"]
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    for call in (evaluate.perplexity, evaluate.token_nll):
        with pytest.raises(BadInput, match="neither a beginning-of-sequence nor an end-of-text token"):
            call(model, bare, "text", 8)


def test_a_perplexity_beyond_all_floats_is_infinite(zoo):
    found = evaluate.perplexity(*zoo["transformer"], ["qxz" * 700], 64)
    assert found.words == 1 and found.nll > 710 and found.word_perplexity == math.inf
    assert math.isfinite(found.token_perplexity) and math.isfinite(found.bits_per_byte)
    assert evaluate.perplexity(*zoo["transformer"], [" \n"], 64).word_perplexity == math.inf
    assert evaluate.Perplexity(2000.0, 2, 1, 1, ()).token_perplexity == math.inf


@pytest.mark.slow
def test_a_family_whose_cache_is_not_exact_does_not_carry(zoo):
    """Bamba drops the state where a filled cache is continued by more than one token; Rwkv has a cache of its own."""
    _, tokenizer = zoo["transformer"]
    shape = {"vocab_size": 1024, "hidden_size": 64, "num_hidden_layers": 4}
    attention = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_layer_indices": [1]}
    scanned = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16}
    text = data.tiny_long_text()[:500]
    for config in (BambaConfig(**shape, **attention, **scanned), RwkvConfig(**shape, context_length=2048)):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
        for window in (2, 16, 100):
            with pytest.raises(BadInput, match=rf"family {config.model_type} .*carry=True"):
                evaluate.perplexity(model, tokenizer, [text], window, carry=True)
        assert evaluate.perplexity(model, tokenizer, [text], 16).tokens > 100
        assert evaluate.perplexity(model, tokenizer, [text], 1000, carry=True).tokens > 100  # nothing to hand over


# ---- several processes ---------------------------------------------------------------------------------------------


def shared_out(processes: int, *arguments: str):
    command = [sys.executable, "scripts/evaluate.py", "--processes", str(processes), *arguments]
    return subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_two_processes_give_the_bits_of_one_and_a_killed_one_ends_the_run_with_a_sentence_and_the_next_goes_on(capsys):
    name, models_ = "test-killed", ("tiny/transformer", "tiny/jamba", "tiny/olmoe")
    results = files.BUILD / "results"
    for folder in results.glob(f"{name}-*.unfinished"):
        shutil.rmtree(folder)
    command = [sys.executable, "scripts/evaluate.py", *models_, "--processes", "2", "--name", name]
    running = subprocess.Popen(command, cwd=files.ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while running.poll() is None and not list(results.glob(f"{name}-*.unfinished/*.json")):
            time.sleep(0.05)
        workers = [p for p in psutil.Process(running.pid).children() if "evaluate.py" in " ".join(p.cmdline())]
        max(workers, key=lambda p: p.pid).kill()
        said, complaint = running.communicate(timeout=120)
    finally:
        running.kill()
    assert running.returncode == 3 and said.count("tiny/transformer:") == 1
    assert complaint.count("\n") == 1 and "1 of 3 models are finished" in complaint and "(SIGKILL)" in complaint
    again = shared_out(2, *models_, "--name", name)
    assert again.returncode == 0 and re.search("^tiny/transformer: .*, kept from before$", again.stdout, re.MULTILINE)
    assert again.stdout.count("kept from before") == 1, "what was cut off is measured anew"
    assert again.stdout.count("saved to") == again.stdout.count("tiny/jamba:") == 1, "said once, written once"
    assert program.main([*models_, "--name", "test-alone"]) == 0, capsys.readouterr().err
    found, alone = (pd.read_csv(files.BUILD / "results" / f"{run}.csv").iloc[:, :8] for run in (name, "test-alone"))
    pd.testing.assert_frame_equal(found, alone, check_exact=True)


@pytest.mark.slow
def test_the_workers_of_a_launcher_that_is_killed_end_with_it():
    command = [sys.executable, "scripts/evaluate.py", "tiny/transformer", "--processes", "2", "--name", "test-orphans"]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    running = subprocess.Popen([*command, "--text", "story", "--stride", "1"], cwd=files.ROOT, **pipes)
    workers: list[psutil.Process] = []
    try:
        while len(workers) < 2 and running.poll() is None:
            time.sleep(0.05)
            workers = [p for p in psutil.Process(running.pid).children() if "evaluate.py" in " ".join(p.cmdline())]
    finally:
        running.kill()
        running.wait()
    assert len(workers) == 2
    _, alive = psutil.wait_procs(workers, timeout=30)
    for orphan in alive:
        orphan.kill()
    assert alive == []


@pytest.mark.slow
def test_a_wrong_request_is_one_sentence_from_several_processes_too():
    done = shared_out(2, "tiny/transformer", "--window", "9000", "--name", "test-wrong")
    assert done.returncode == 2 and "8,192 positions" in done.stderr and "Traceback" not in done.stderr


TWO = """
import json, os, sys
import torch
torch.set_num_threads(1)
from shared import evaluate, models
model, tokenizer = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
model.config.max_position_embeddings = 512
rank = 0 if os.fork() else 1
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=2)
requests = {
    "a part of a stream": ([["one"], ["two", "\\udcff"]], 8, False),
    "a stream that breaks": ([["one"], (1 / 0 for _ in "a")], 8, False),
    "a document": (["one", "two\\ud83d"], 8, False),
    "more than the positions, in one alone": (["short", "a b " * 500], 100, True),
    "nothing wrong": ([["one"], ["two"]], 8, False),
}
said = {}
for name, (texts, window, carry) in requests.items():
    try:
        said[name] = str(evaluate.perplexity(model, tokenizer, texts, window, carry=carry).tokens)
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump(said, file)
torch.distributed.barrier()
if rank == 0:
    os.wait()
"""


@pytest.mark.slow
def test_what_one_process_cannot_read_stops_them_all_and_none_waits(tmp_path):
    command = [sys.executable, "-c", TWO, str(tmp_path / "store")]
    done = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for said in (json.loads((tmp_path / f"store.{rank}").read_text()) for rank in range(2)):
        assert "lone surrogate" in said["a part of a stream"]
        assert "ZeroDivisionError: division by zero" in said["a stream that breaks"]
        assert said["a document"].startswith("BadInput: Document 1 has a lone surrogate")
        assert said["more than the positions, in one alone"].startswith("ContextTooLong: ")
        assert said["nothing wrong"].isdigit()
