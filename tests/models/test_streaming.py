"""Loading tensor by tensor: the same model to the bit, and no second copy of it. Real files, real processes."""

import json
import os
import re
import select
import subprocess
import sys

import pytest
import torch
from conftest import cached_pages
from small_models import SMALL, write

from shared import files, models
from shared.machine import guard, pool
from shared.models import cards, streaming

pytestmark = pytest.mark.slow

OPTIONS = {"output_loading_info": True, "ignore_mismatched_sizes": True, "use_safetensors": True}


def both(folder, dtype):
    """A model as from_pretrained loads it, and as it is streamed."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = {**OPTIONS, "dtype": dtype, "trust_remote_code": False}
    return AutoModelForCausalLM.from_pretrained(folder, **options), streaming.from_pretrained(folder, **options)


def assert_equal(usual, streamed):
    (model, info), (same, its_info) = usual, streamed
    state, other = model.state_dict(), same.state_dict()
    assert type(model) is type(same) and state.keys() == other.keys() and info == its_info
    for key, tensor in state.items():
        assert tensor.dtype == other[key].dtype and torch.equal(tensor, other[key]), key
        assert other[key].device.type == "cpu"
    assert model.generation_config.to_dict() == same.generation_config.to_dict()
    assert model.config.to_diff_dict() == same.config.to_diff_dict() and model.training == same.training
    tied = model.config.tie_word_embeddings
    assert (same.get_output_embeddings().weight is same.get_input_embeddings().weight) == tied
    ids = torch.arange(200, 240)[None]
    with torch.no_grad():
        assert torch.equal(model(ids).logits, same(ids).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("name", cards.TINY)
def test_each_shipped_model_is_the_same_to_the_bit(name, dtype):
    cards.published_config(name)  # registers DeepSeekMoE
    assert_equal(*both(files.DATA / name, dtype))


@pytest.mark.parametrize("kind", [*SMALL, "mixtral"])
def test_a_checkpoint_in_many_files_with_an_entry_for_each_expert_is_the_same_to_the_bit(kind, tmp_path):
    write(tmp_path, kind, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) >= 3
    if kind in ("olmoe", "deepseek-moe", "mixtral", "jamba"):  # the published layout; the model has one weight a layer
        assert any(re.search(r"experts\.3\.\w+\.weight", key) for key in index)
    assert_equal(*both(tmp_path, torch.bfloat16))


def test_tied_embeddings_stay_one_tensor():
    model, _ = streaming.from_pretrained(files.DATA / "tiny/mamba", **OPTIONS)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.backbone.embeddings.weight


def test_on_unified_memory_load_streams_and_elsewhere_it_does_not(monkeypatch):
    usual, _ = models.load("tiny/olmoe", device="cpu")
    streamed, real = [], streaming.from_pretrained
    monkeypatch.setattr(guard, "protect", lambda device=None: None)
    monkeypatch.setattr(streaming, "from_pretrained", lambda *a, **k: streamed.append(a) or real(*a, **k))
    models.load("tiny/olmoe", device="cpu")
    assert not streamed
    monkeypatch.setattr(pool, "is_unified", lambda device=None: True)
    model, _ = models.load("tiny/olmoe", device="cpu")
    assert len(streamed) == 1
    assert all(torch.equal(a, b) for a, b in zip(usual.parameters(), model.parameters(), strict=True))


def test_a_checkpoint_with_another_key_or_shape_is_refused_as_it_is_elsewhere(tmp_path, monkeypatch):
    write(tmp_path, "mamba")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "state_size": 4}))
    monkeypatch.setattr(pool, "is_unified", lambda device=None: True)
    monkeypatch.setattr(models.checkpoints, "remedy", lambda folder: "load it anew")
    with pytest.raises(models.DamagedCheckpoint, match="mismatched keys, the first"):
        models.from_folder(tmp_path, torch.bfloat16, torch.device("cpu"))


# ---------------------------------------------------------------------------------------------------- what it takes

LARGE = {
    # As OLMoE has it, 16 layers of experts: what is in flight is that of a layer.
    "olmoe": {
        "model_type": "olmoe",
        "hidden_size": 512,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "intermediate_size": 384,
        "num_experts": 16,
        "num_experts_per_tok": 2,
        "vocab_size": 8192,
        "eos_token_id": 0,
    },
    "mamba": {"model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 16384},
}
# Each load is in a process of its own, a fork of this one before it has loaded anything: the imports are made once.
CHILD = """
import os, sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, MambaForCausalLM, OlmoeForCausalLM
from transformers.utils import logging
from shared.machine import meters
from shared.models import streaming
logging.disable_progress_bar()
while asked := sys.stdin.readline().strip():
    if os.fork():
        os.wait()
        print("over", flush=True)
        continue
    how, *folders = asked.split("\\t")
    folder, warm = map(Path, folders)
    load = streaming.from_pretrained if how == "streamed" else AutoModelForCausalLM.from_pretrained
    load(warm, dtype=torch.bfloat16)  # imports, and what a first load leaves
    meters.Host().settle()
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    model = load(folder, dtype=torch.bfloat16)
    print(sum(p.numel() * p.element_size() for p in model.parameters()), flush=True)
    sys.stdin.readline()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def child():
    environment = {**os.environ, "PYTHONPATH": str(files.ROOT), "OMP_NUM_THREADS": "1"}
    # glibc keeps pieces that were freed, a device gives them to its next tensor: here they go back at once.
    environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", CHILD], env=environment, **pipes) as running:
        yield running


def anonymous(pid: int) -> int:
    """Bytes of a process that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return int(re.search(r"RssAnon:\s+(\d+)", status.read())[1]) * 1024


def measured(child, how: str, folder, warm) -> tuple[float, float]:
    """Peak anonymous memory of a load, in a process of its own, over the model's bytes; share of the files in cache."""
    print(how, folder, warm, sep="\t", file=child.stdin, flush=True)
    loading = int(child.stdout.readline())
    before = peak = anonymous(loading)
    print(file=child.stdin, flush=True)
    while not select.select([child.stdout], [], [], 0.002)[0]:
        peak = max(peak, anonymous(loading))
    size = int(child.stdout.readline())
    cached = [cached_pages(file) for file in folder.glob("*.safetensors")]
    print(file=child.stdin, flush=True)
    assert child.stdout.readline() == "over\n" and size > 150e6
    return (peak - before) / size, sum(cached) / len(cached)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RssAnon and mincore are Linux's")
@pytest.mark.parametrize(("kind", "saved"), [("olmoe", torch.bfloat16), ("mamba", torch.float32)])
def test_a_load_takes_the_models_size_and_little_more_and_leaves_no_pages_in_the_cache(kind, saved, child, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(**LARGE[kind])
    model = AutoModelForCausalLM.from_config(config, dtype=saved)
    model.save_pretrained(tmp_path, max_shard_size="100MB")
    largest = max(p.numel() for p in model.parameters()) / sum(p.numel() for p in model.parameters())
    del model
    for file in tmp_path.glob("*.safetensors"):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # pages that are not on disk yet cannot be given back
    warm = files.DATA / "tiny" / kind
    usual, usual_cached = measured(child, "from_pretrained", tmp_path, warm)
    streamed, cached = measured(child, "streamed", tmp_path, warm)
    print(
        f"{kind}, {saved} on disk, loaded as bf16: peak anonymous memory over the model's bytes: "
        f"streamed {streamed:.3f}, from_pretrained {usual:.3f}; "
        f"files in the page cache afterwards: {cached:.1%} and {usual_cached:.1%}; "
        f"predicted at most {1 + streaming.IN_FLIGHT * largest:.3f}"
    )
    assert 0.95 < streamed <= min(1.15, 1 + streaming.IN_FLIGHT * largest)
    assert cached < 0.05
