"""Replayed decode writes what eager decode writes, and what cannot be recorded is one sentence.

Recorded and replayed by tests/recorder.py, which keeps a CUDA graph's rules on a CPU; the last tests need a GPU.
"""

import pytest
import torch
from recorder import Cuda, Graph
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM
from transformers.cache_utils import StaticLayer

from shared import data, memory, models, scan
from shared.errors import CourseError
from shared.machine import graphs
from shared.models.sizes import published_config

TINY = ("tiny/mamba", "tiny/transformer", "tiny/olmoe", "tiny/deepseek-moe", "tiny/jamba")
MOE = ("tiny/olmoe", "tiny/deepseek-moe", "tiny/jamba")
STEPS = 32


@pytest.fixture
def recorder(monkeypatch) -> list[Graph]:
    return Cuda.install(monkeypatch)


def load(name: str, dtype: torch.dtype = torch.float32, device="cpu"):
    model, _ = models.load(name, dtype=dtype, device=device)
    if name in MOE and dtype == torch.float32:
        model.set_experts_implementation("batched_mm")
    return model


def prompt(model, batch: int = 1, tokens: int = 40) -> torch.Tensor:
    rows = [data.random_tokens(model.config.vocab_size, [tokens], seed=row)[tokens] for row in range(batch)]
    return torch.cat(rows).to(model.device)


class Decoding:
    """A prefill and the steps after it, each of which adds a token to `written` (B, 1 + STEPS) in place."""

    def __init__(self, model, ids: torch.Tensor):
        self.model = model
        logits, self.cache = models.forward(model, ids)
        self.token = logits[:, -1:].argmax(-1)
        self.written = self.token.repeat(1, 1 + STEPS)
        self.place = self.token.new_ones(1)
        self.logits = torch.zeros_like(logits)

    def step(self) -> None:
        self.logits.copy_(models.forward(self.model, self.token, self.cache)[0])
        self.token.copy_(self.logits.argmax(-1))
        self.written.index_copy_(1, self.place, self.token)
        self.place.add_(1)

    def eagerly(self) -> torch.Tensor:
        for _ in range(STEPS):
            self.step()
        return self.written

    def replayed(self, step=None, fixed: bool = True, warmup: int = 3) -> torch.Tensor:
        if fixed:
            graphs.fixed(self.cache, 40 + STEPS)
        replay = graphs.capture(step or self.step, self.model.device, warmup)
        assert self.place == 1 + warmup, "the warm-up steps are real, and recording one more has no effect"
        for _ in range(STEPS - warmup):
            replay()
        return self.written


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_replayed_decode_writes_the_tokens_of_eager_decode(recorder, name, batch):
    model = load(name)
    ids = prompt(model, batch)
    eager = Decoding(model, ids).eagerly()
    assert torch.equal(Decoding(model, ids).replayed(), eager)
    assert len(recorder) == 1 and recorder[0].replays == STEPS - 3
    assert len(eager[0].unique()) > 3, "a text that says one thing could hide a cache that stands still"


@pytest.mark.parametrize("name", ["tiny/mamba", "tiny/jamba"])
@torch.inference_mode()
def test_a_step_can_be_recorded_where_the_courses_scan_stands_in_for_the_librarys(recorder, name):
    model = load(name)
    ids = prompt(model)
    with scan.in_transformers():
        assert torch.equal(Decoding(model, ids).replayed(), Decoding(model, ids).eagerly())


@pytest.mark.slow
@pytest.mark.parametrize("name", MOE)
@torch.inference_mode()
def test_grouped_experts_are_recorded_in_the_type_that_has_a_kernel(recorder, name):
    """bfloat16 rounds differently behind a mask, so what is compared is the fixed cache, recorded or not."""
    model = load(name, torch.bfloat16)
    assert model.get_experts_implementation()[""] == "grouped_mm"
    ids = prompt(model)
    plain = Decoding(model, ids)
    graphs.fixed(plain.cache, 40 + STEPS)
    assert torch.equal(Decoding(model, ids).replayed(), plain.eagerly())


# ---- what goes wrong is seen ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_cache_that_is_not_fixed_gives_other_tokens(recorder):
    """The recorder itself is on trial: a cache that grows is a new tensor at each step, which no replay would see."""
    model = load("tiny/transformer")
    ids = prompt(model)
    assert not torch.equal(Decoding(model, ids).replayed(fixed=False), Decoding(model, ids).eagerly())


@torch.inference_mode()
def test_a_layer_that_is_replaced_instead_of_updated_gives_other_tokens(recorder, monkeypatch):
    update = StaticLayer.update

    def replaces(self, keys, values, *args, **options):
        if self.is_initialized:
            self.keys = self.keys.clone()
        return update(self, keys, values, *args, **options)

    model = load("tiny/transformer")
    ids = prompt(model)
    eager = Decoding(model, ids).eagerly()
    monkeypatch.setattr(StaticLayer, "update", replaces)
    again = Decoding(model, ids)
    graphs.fixed(again.cache, 40 + STEPS)
    assert torch.equal(again.eagerly(), eager), "step by step nothing is wrong with it"
    assert not torch.equal(Decoding(model, ids).replayed(), eager)


def sentence(decoding: Decoding, **options) -> str:
    with pytest.raises(CourseError) as raised:
        decoding.replayed(**options)
    assert Cuda.current is Cuda.default and Cuda.strict is None, "the stream and the mode are as they were"
    assert "\n" not in str(raised.value)
    return str(raised.value)


@torch.inference_mode()
def test_a_step_that_waits_for_the_host_is_one_sentence_before_anything_is_recorded(recorder):
    model = load("tiny/mamba")
    decoding = Decoding(model, prompt(model))

    def step():
        decoding.step()
        decoding.token.sum().item()

    assert "cannot be recorded" in sentence(decoding, step=step)
    assert not recorder[0].calls


@torch.inference_mode()
def test_a_step_that_fails_only_while_it_is_recorded_is_one_sentence_too(recorder):
    model = load("tiny/mamba")
    decoding, calls = Decoding(model, prompt(model)), []

    def step():
        calls.append(decoding.step())
        if len(calls) == 4:
            decoding.token.sum().item()

    assert "cannot be recorded" in sentence(decoding, step=step)
    assert recorder[0].calls and not recorder[0].valid


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("name", MOE)
@torch.inference_mode()
def test_experts_that_wait_for_the_host_are_one_sentence_that_names_those_that_do_not(recorder, name, implementation):
    """One by one, as with bits=8; or grouped without a kernel for it: in float32, or on a GPU of capability 8 or 12."""
    model = load(name)
    model.set_experts_implementation(implementation)
    assert 'set_experts_implementation("batched_mm")' in sentence(Decoding(model, prompt(model)))


@torch.inference_mode()
def test_running_out_of_memory_stays_that(recorder):
    calls = []

    def step():
        calls.append(1)
        if len(calls) == 2:
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        graphs.capture(step, "cpu", warmup=2)
    assert Cuda.current is Cuda.default and Cuda.strict is None


def test_without_a_gpu_a_graph_is_one_sentence():
    with pytest.raises(CourseError, match="need an NVIDIA GPU, and this model is on the cpu"):
        graphs.capture(lambda: None, "cpu")


@torch.inference_mode()
def test_a_cache_of_sliding_windows_is_one_sentence():
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=64, num_hidden_layers=1, sliding_window=8, **shape)).eval()
    _, cache = models.forward(model, torch.ones(1, 4, dtype=torch.long))
    with pytest.raises(CourseError, match="DynamicSlidingWindowLayer"):
        graphs.fixed(cache, 16)


# ---- what is fixed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_a_fixed_cache_holds_what_a_growing_one_holds_at_the_end(name):
    model = load(name)
    growing, fixed = Decoding(model, prompt(model)), Decoding(model, prompt(model))
    growing.eagerly()
    graphs.fixed(fixed.cache, 40 + STEPS)
    assert memory.cache_bytes(fixed.cache) == memory.cache_bytes(growing.cache)


class Devices(TorchDispatchMode):
    """The devices of all tensors that go into operators or come out of them."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen |= {t.device.type for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)}
        return result


@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_a_step_copies_nothing_from_the_host(name):
    """On torch's device without bytes a tensor of the host's stands out, and what asks for a value raises."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published_config(name)).eval()
    decoding = Decoding(model, torch.zeros(1, 40, dtype=torch.long, device="meta"))
    graphs.fixed(decoding.cache, 40 + STEPS)
    with Devices() as devices:
        decoding.step()
    assert devices.seen == {"meta"}
    with Devices() as devices:
        decoding.token.add_(torch.arange(1).to("meta"))
    assert devices.seen == {"cpu", "meta"}, "what this test looks for can be seen"


# ---- on a GPU ---------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")


@needs_gpu
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_on_a_gpu_a_graph_writes_the_tokens_of_eager_decode(name, batch):
    model = load(name, device="cuda")
    ids = prompt(model, batch)
    assert torch.equal(Decoding(model, ids).replayed(), Decoding(model, ids).eagerly())


@needs_gpu
@pytest.mark.parametrize("name", TINY)
@torch.inference_mode()
def test_on_a_gpu_a_replayed_step_gives_the_logits_of_the_same_step(name):
    model = load(name, device="cuda")
    ids = prompt(model)
    plain, recorded = Decoding(model, ids), Decoding(model, ids)
    graphs.fixed(plain.cache, 40 + STEPS)
    graphs.fixed(recorded.cache, 40 + STEPS)
    replay = graphs.capture(recorded.step, model.device, warmup=3)
    replay()
    for _ in range(4):
        plain.step()
    torch.testing.assert_close(recorded.logits, plain.logits, rtol=0, atol=1e-4)


@needs_gpu
@torch.inference_mode()
def test_on_a_gpu_a_step_that_waits_is_one_sentence_and_the_next_graph_works():
    model = load("tiny/olmoe", device="cuda")
    model.set_experts_implementation("eager")
    with pytest.raises(CourseError, match="cannot be recorded"):
        Decoding(model, prompt(model)).replayed()
    model.set_experts_implementation("batched_mm")
    ids = prompt(model)
    assert torch.equal(Decoding(model, ids).replayed(), Decoding(model, ids).eagerly())
