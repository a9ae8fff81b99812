"""The selective scan is transformers' own, but differentiable, resumable and quick; and it leaves no trace there."""

import copy
import itertools
import math
import random
import time
from contextlib import nullcontext

import pytest
import torch
from small_models import shrunk
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, Cache, FalconMambaConfig, JambaConfig, MambaConfig
from transformers.cache_utils import get_layer_types_and_kwargs
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.jamba import modeling_jamba
from transformers.models.mamba import modeling_mamba
from transformers.models.zamba import modeling_zamba

from shared import models, scan
from shared.kits import profiles
from shared.machine import kernels
from shared.models.running import STATE_ONLY

REFERENCE = modeling_mamba.mamba_selective_scan


def inputs(B=2, D=6, N=4, T=9, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, dtype=dtype)  # noqa: E731
    return {
        "u": draw(B, D, T),
        "delta": draw(B, D, T),
        "A": -draw(D, N).exp(),
        "B": draw(B, N, T),
        "C": draw(B, N, T),
        "D": draw(D),
        "z": draw(B, D, T),
        "delta_bias": draw(D),
    }


@pytest.mark.parametrize("T", [1, 2, 300])
def test_scan_equals_the_reference_of_transformers(T):
    given = inputs(T=T)
    arguments = list(given.values())[:5]
    options = {name: given[name] for name in ("D", "z", "delta_bias")}
    ours, state = scan.selective_scan(*arguments, **options, delta_softplus=True, return_last_state=True)
    theirs, their_state = REFERENCE(*arguments, **options, delta_softplus=True, return_last_state=True)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, their_state, atol=1e-5, rtol=1e-5)


def test_optional_arguments_may_be_left_out():
    given = inputs()
    arguments = list(given.values())[:5]
    arguments[1] = arguments[1].abs()  # a raw delta, used as it comes
    torch.testing.assert_close(scan.selective_scan(*arguments), REFERENCE(*arguments), atol=1e-5, rtol=1e-5)


def test_two_pieces_with_the_state_handed_over_equal_one_pass():
    given = inputs(T=31) | {"delta_softplus": True, "return_last_state": True}
    cut = {name: name in ("u", "delta", "B", "C", "z") for name in given}
    whole, last = scan.selective_scan(**given)
    first, middle = scan.selective_scan(**{n: v[..., :13] if cut[n] else v for n, v in given.items()})
    tail = {n: v[..., 13:] if cut[n] else v for n, v in given.items()}
    second, end = scan.selective_scan(**tail, initial_state=middle)
    torch.testing.assert_close(torch.cat([first, second], -1), whole)
    torch.testing.assert_close(end, last)
    forgotten = scan.selective_scan(**tail)[0]
    assert (forgotten - whole[..., 13:]).abs().max() > 0.01, "the state would not matter here: the test proves nothing"


@pytest.mark.slow
@pytest.mark.parametrize(("chunk", "lanes"), [(2, 1), (3, 4), (64, 12288)])
def test_gradients_of_every_argument_are_right(monkeypatch, chunk, lanes):
    monkeypatch.setattr(scan, "CHUNK", chunk)
    monkeypatch.setattr(scan, "LANES", lanes)
    given = {n: v.requires_grad_() for n, v in inputs(B=2, D=3, N=2, T=5, dtype=torch.float64).items()}
    start = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)

    def both(start, *values):
        return scan.selective_scan(
            **dict(zip(given, values, strict=True)), delta_softplus=True, return_last_state=True, initial_state=start
        )

    assert torch.autograd.gradcheck(both, (start, *given.values()))


def test_result_is_the_same_with_and_without_gradients():
    given = inputs(T=20)
    plain = scan.selective_scan(**given, delta_softplus=True)
    given["u"].requires_grad_()
    torch.testing.assert_close(scan.selective_scan(**given, delta_softplus=True), plain, atol=0, rtol=0)


def test_half_precision_comes_back_as_it_went_in_and_is_summed_in_float32():
    given = inputs(T=200)
    half = {n: v.bfloat16() for n, v in given.items()}
    y, state = scan.selective_scan(**half, delta_softplus=True, return_last_state=True)
    exact = scan.selective_scan(**{n: v.float() for n, v in half.items()}, delta_softplus=True)
    assert y.dtype == torch.bfloat16 and state.dtype == torch.float32
    torch.testing.assert_close(y, exact.bfloat16(), atol=0, rtol=0)


def test_autocast_does_not_lower_the_precision():
    given = inputs(T=50) | {"delta_softplus": True}
    plain = scan.selective_scan(**given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(scan.selective_scan(**given), plain, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("B", torch.zeros(2, 9, 4), r"B has shape \(2, 9, 4\).*need \(2, 4, 9\)"),
        ("D", torch.zeros(4), r"D has shape \(4,\).*need \(6,\)"),
        ("z", torch.zeros(2, 6, 8), r"z has shape \(2, 6, 8\).*need \(2, 6, 9\)"),
        ("initial_state", torch.zeros(2, 4, 6), r"initial_state has shape \(2, 4, 6\).*need \(2, 6, 4\)"),
    ],
)
def test_wrong_shapes_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        scan.selective_scan(**inputs() | {name: value})


def sequential(u, delta, A, B, C):
    """The definition in float64, one step after the other: y (batch, D, T)."""
    u, delta, A, B, C = (x.double() for x in (u, delta, A, B, C))
    h, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        h = torch.exp(step * A) * h + step * B[:, None, :, t] * u[:, :, t, None]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, -1)


LENGTHS = [1, 2, 3, 15, 16, 17, 63, 64, 65, 127, 500, 1000, 1001, 2000, 4097, 5000]


def draw(seed, T):
    """delta from 1e-6 to 20 and A from -1e-3 to -1e3, both evenly on a log scale; delta varies in time or, in three of
    ten, stands still, so that the roundings of a decay add up. Returns (u, delta, A, B, C)."""
    choose, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    batch, D, N = choose.choice([1, 2, 3]), choose.choice([1, 2, 5]), choose.choice([1, 4, 16])

    def between(low, high, *shape):
        return low * (high / low) ** torch.rand(*shape, generator=generator)

    u, B, C = (torch.randn(batch, n, T, generator=generator) for n in (D, N, N))
    delta = between(1e-6, 20, batch, D, T if choose.random() < 0.7 else 1).expand(batch, D, T)
    return u, delta, -between(1e-3, 1e3, D, N), B, C


def errors(given):
    """The largest difference of the course's scan, of the reference, and what rounding an output four times costs."""
    exact = sequential(*given)
    ours, theirs = ((function(*given) - exact).abs().max().item() for function in (scan.selective_scan, REFERENCE))
    return ours, theirs, 4 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize(("seed", "T"), list(enumerate(LENGTHS)))
def test_scan_is_as_exact_as_the_reference_for_any_length_chunk_delta_and_A(monkeypatch, seed, T):
    choose = random.Random(seed)
    monkeypatch.setattr(scan, "CHUNK", choose.choice([1, 2, 7, 16, scan.CHUNK, 1000]))
    monkeypatch.setattr(scan, "LANES", choose.choice([1, 16, 100, scan.LANES]))
    ours, theirs, rounding = errors(draw(seed, T))
    assert ours <= theirs + rounding, f"off by {ours:.1e}, the reference by {theirs:.1e}"


def test_over_many_draws_scan_is_no_less_exact_than_the_reference():
    """In about one draw of a hundred either is off by more than the other and rounding: each rounds the exponents in
    its own way, and where delta stands still one rounding repeats at every step. So the mean counts too."""
    found = [errors(draw(seed, 60)) for seed in range(100)]
    ratios = [math.log(ours / theirs) for ours, theirs, _ in found if ours and theirs]
    assert math.exp(sum(ratios) / len(ratios)) < 1
    assert sum(ours > theirs + rounding for ours, theirs, rounding in found) <= 5


def test_extreme_but_legal_inputs_give_finite_outputs_and_gradients():
    given = inputs(D=8, T=200) | {"delta_softplus": True}
    given["delta"] = torch.tensor([-1e4, -100.0, -20.0, 0.0, 20.0, 100.0, 1e4, 1e6]).view(1, 8, 1).repeat(2, 1, 200)
    given["A"] = -torch.logspace(-6, 6, 32).view(8, 4)
    given["z"] = given["z"] * 1e4
    tensors = [x.requires_grad_() for x in given.values() if torch.is_tensor(x)]
    y = scan.selective_scan(**given)
    y.sum().backward()
    assert y.isfinite().all() and all(x.grad.isfinite().all() for x in tensors)


def test_a_state_that_fades_away_costs_no_more_time(one_thread):
    """Numbers below 1e-38 are slow on some processors; a state that only decays passes through them on its way to 0."""
    given = inputs(B=1, D=128, N=16, T=1024)
    given["A"], given["delta"] = torch.full((128, 16), -1.0), torch.full((1, 128, 1024), 0.2)
    silent = given | {"u": given["u"] * (torch.arange(1024) == 0)}
    assert seconds(lambda: scan.selective_scan(**silent)) < 4 * seconds(lambda: scan.selective_scan(**given))


def test_empty_sequence_returns_the_state_it_got():
    start = torch.randn(2, 6, 4)
    y, last = scan.selective_scan(**inputs(T=0), initial_state=start, return_last_state=True)
    assert y.shape == (2, 6, 0) and torch.equal(last, start)


def test_any_memory_layout_gives_the_same():
    given = inputs(T=40)
    turned = {n: v.transpose(-1, -2).contiguous().transpose(-1, -2) if v.ndim > 1 else v for n, v in given.items()}
    torch.testing.assert_close(scan.selective_scan(**turned), scan.selective_scan(**given), atol=0, rtol=0)
    constant = {name: given[name][..., :1].expand_as(given[name]) for name in ("delta", "B", "C")}
    dense = {name: value.contiguous() for name, value in constant.items()}
    grads = []
    for layout in (constant, dense):
        inside = {n: v.detach().requires_grad_() for n, v in (given | layout).items()}
        scan.selective_scan(**inside, delta_softplus=True).sum().backward()
        grads.append([x.grad for x in inside.values()])
    torch.testing.assert_close(grads[0], grads[1], atol=0, rtol=0)


def seconds(work):
    best = float("inf")
    for _ in range(3):
        start = time.process_time()  # of this process: other work on the machine does not count
        work()
        best = min(best, time.process_time() - start)
    return best


def train(T, D=64, function=scan.selective_scan):
    given = inputs(B=1, D=D, N=16, T=T)
    given["u"].requires_grad_()
    return lambda: function(*list(given.values())[:5], D=given["D"], z=given["z"]).sum().backward()


def test_forward_and_backward_take_work_linear_in_the_length():
    counts = []
    for chunks in (4, 8, 12):
        with profiles.Counted() as count:
            train(chunks * scan.CHUNK)()
        counts.append(count)
    one, two, three = counts
    assert three.operations - two.operations == two.operations - one.operations > 0
    assert three.bytes - two.bytes == pytest.approx(two.bytes - one.bytes, rel=0.01) and one.bytes > 0


def allocated(work) -> int:
    """The most bytes that the tensors made during `work` hold at once, by the allocator's own count: RSS is noisy."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    changes = [event.nbytes() for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(itertools.accumulate(changes))


@pytest.mark.slow
def test_memory_of_training_is_that_of_inputs_and_outputs():
    """A few arrays (D, T): y, the gradients, what the gate keeps. The states are 16 such arrays, and the reference
    keeps several of that size."""
    arrays = lambda T, function, D=64: allocated(train(T, D, function)) / (4 * D * T)  # noqa: E731
    assert arrays(8192, scan.selective_scan) < 10
    assert arrays(128, REFERENCE) > 40


# ------------------------------------------------------------------------------------------------------ in transformers


TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
JAMBA = {
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attn_layer_offset": 1,
    "attn_layer_period": 2,
    "num_experts": 2,
}
CONFIGS = {
    "mamba": MambaConfig(**TINY),
    "falcon_mamba": FalconMambaConfig(**TINY),
    "jamba": JambaConfig(**TINY, **JAMBA),
}
MODULES = {
    "mamba": modeling_mamba,
    "falcon_mamba": modeling_falcon_mamba,
    "jamba": modeling_jamba,
    "zamba": modeling_zamba,
}


@pytest.fixture(params=CONFIGS)
def model(request):
    """Random weights of a size at which the state decides the output; with fresh, small ones it would not show."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "A_log" in name:
                weight.sub_(1)
            elif name.endswith("dt_proj.bias"):
                weight.uniform_(-5, -2)
            elif weight.ndim > 1:
                weight.normal_(0, 0.4)
    return model


IDS = torch.randint(2, 32, (3, 40), generator=torch.Generator().manual_seed(1))


def whole(model, mask=None):
    with torch.no_grad():
        return model(IDS, attention_mask=mask, use_cache=False).logits


def cache_of(output):
    return next(value for value in output.values() if isinstance(value, Cache))


def cache_name(model):
    return "past_key_values" if model.config.model_type == "jamba" else "cache_params"


def read(model, ids, lengths, mask=None):
    """The logits of ids, read in pieces of these lengths, and the cache after them."""
    logits, known, start = [], {}, 0
    for length in lengths:
        end = start + length
        if mask is not None:  # Jamba, which attends, wants the mask of all that it has read; Mamba that of the piece
            known["attention_mask"] = mask[:, 0 if model.config.model_type == "jamba" else start : end]
        with torch.no_grad():
            output = model(ids[:, start:end], use_cache=True, **known)
        known, start = {cache_name(model): cache_of(output)}, end
        logits.append(output.logits)
    return torch.cat(logits, 1), known


def pieces(seed, total=40):
    cuts = sorted(random.Random(seed).sample(range(1, total), 5))
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_reading_in_random_pieces_equals_one_forward(model, seed):
    with scan.in_transformers():
        logits, _ = read(model, IDS, pieces(seed))
    torch.testing.assert_close(logits, whole(model), atol=1e-4, rtol=1e-4)


def test_without_it_transformers_drops_the_state(model):
    """The error of the library that `in_transformers` is there for. Should this fail, the library carries the state
    itself, and half of `in_transformers` can go."""
    expected = whole(model)
    logits, _ = read(model, IDS, [20, 20])
    torch.testing.assert_close(logits[:, :20], expected[:, :20], atol=1e-4, rtol=1e-4)
    assert (logits - expected)[:, 20:].abs().max() > 0.1 * expected.abs().max()
    by_steps, _ = read(model, IDS, [20] + 20 * [1])
    torch.testing.assert_close(by_steps, expected, atol=1e-4, rtol=1e-4)


def test_left_padding_with_a_mask_stays_exact_in_pieces(model):
    """The second row's padding is longer than the first piece. (A piece of one token must not be padding: transformers
    takes it for a generated one and, in Jamba, passes no mask on.)"""
    mask = torch.ones_like(IDS)
    mask[0, :3] = mask[1, :9] = 0
    with scan.in_transformers():
        logits, _ = read(model, IDS, [7, 12, 1, 20], mask)
    torch.testing.assert_close(logits[mask == 1], whole(model, mask)[mask == 1], atol=1e-4, rtol=1e-4)
    alone = copy.deepcopy(model)(IDS[1:2, 9:]).logits
    torch.testing.assert_close(logits[1:2, 9:], alone, atol=1e-4, rtol=1e-4)


def generate(model, ids, **options):
    """The tokens that the model adds, and the logits that it chose them by (batch, tokens, vocabulary)."""
    options |= {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    output = model.generate(ids, **options, output_logits=True, return_dict_in_generate=True)
    return output.sequences[:, -6:], torch.stack(output.logits, 1)


def test_generate_continues_a_conversation_from_its_cache(model):
    said, expected = generate(model, IDS)
    with scan.in_transformers():
        _, known = read(model, IDS[:, :25], [10, 15])
        given = (
            IDS if model.config.model_type == "jamba" else IDS[:, 25:]
        )  # Mamba's generate does not cut what it knows
        again, logits = generate(model, given, **known)
    assert torch.equal(again, said)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["jamba"], indirect=True)
def test_generate_with_chunked_prefill_equals_one_prefill_and_without_the_scan_does_not(model):
    said, expected = generate(model, IDS)
    with scan.in_transformers():
        again, logits = generate(model, IDS, prefill_chunk_size=7)
    assert torch.equal(again, said)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
    assert (generate(model, IDS, prefill_chunk_size=7)[1] - expected)[:, 0].abs().max() > 0.1 * expected.abs().max()


def test_bfloat16_models_continue_as_exactly_as_bfloat16_allows(model):
    """Rounding each weight and activation to 8 bits costs some; cutting the sequence costs no more on top of it."""
    exact = whole(model)
    half = copy.deepcopy(model).bfloat16()
    with scan.in_transformers():
        rounding = (whole(half) - exact).abs()
        cut = (read(half, IDS, [11, 2, 17, 10])[0] - exact).abs()
    dropped = (read(half, IDS, [11, 2, 17, 10])[0] - exact).abs()
    assert cut.mean() < 1.5 * rounding.mean() < 0.25 * dropped.mean()


def test_whole_sequences_and_generation_stay_as_they_were(model):
    before, said = whole(model), model.generate(IDS, max_new_tokens=4, do_sample=False)
    with scan.in_transformers():
        assert models.path(model) == "course"
        torch.testing.assert_close(whole(model), before, atol=1e-5, rtol=1e-5)
        assert torch.equal(model.generate(IDS, max_new_tokens=4, do_sample=False), said)
    assert models.path(model) == "reference"


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_gives_the_gradients_of_the_reference(model, checkpointing):
    def gradients(context):
        learner = copy.deepcopy(model).train()
        if checkpointing and context is not nullcontext:
            learner.activation_checkpointing_enable()
        with context():
            learner(IDS, labels=IDS).loss.backward()
        return {name: weight.grad for name, weight in learner.named_parameters()}

    torch.testing.assert_close(gradients(scan.in_transformers), gradients(nullcontext), atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("model", ["mamba"], indirect=True)
def test_modules_that_accelerate_has_wrapped_carry_the_state_too(model):
    from accelerate import cpu_offload

    expected = whole(model)
    cpu_offload(model, execution_device="cpu")
    with scan.in_transformers():
        logits, _ = read(model, IDS, [20, 20])
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def traces():
    return [
        (module.mamba_selective_scan, mixer.__call__, "__call__" in vars(mixer))
        for module in MODULES.values()
        for name, mixer in vars(module).items()
        if name.endswith("Mixer")
    ]


def test_transformers_is_restored_even_after_an_error():
    before = traces()
    assert len(before) == 4
    with pytest.raises(RuntimeError, match="inside"), scan.in_transformers(), scan.in_transformers():
        assert all(now[0] is not then[0] and now[2] for now, then in zip(traces(), before, strict=True))
        raise RuntimeError("inside")
    assert traces() == before


def test_blocks_that_end_in_another_order_than_they_began_leave_nothing_behind(model):
    before = traces()
    first, second = scan.in_transformers(), scan.in_transformers()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    logits, _ = read(model, IDS, [13, 27])
    second.__exit__(None, None, None)
    torch.testing.assert_close(logits, whole(model), atol=1e-4, rtol=1e-4)
    assert traces() == before
    with scan.in_transformers():
        assert traces() != before
    assert traces() == before


def test_nested_use_carries_the_state_until_the_outer_block_ends(model):
    with scan.in_transformers():
        with scan.in_transformers():
            inner, _ = read(model, IDS, [13, 27])
        outer, _ = read(model, IDS, [13, 27])
    for logits in (inner, outer):
        torch.testing.assert_close(logits, whole(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model", ["mamba"], indirect=True)
def test_a_kernel_keeps_what_starts_from_zero_and_the_scan_takes_what_continues(model, monkeypatch):
    """In the kernel's place stands the reference under the kernel's name and signature, which counts its calls."""
    calls = []

    def kernel(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):
        calls.append(u.shape[2])
        return REFERENCE(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)

    kernel.__module__ = "mamba_ssm.ops.selective_scan_interface"

    def chosen_at_import(implementation):
        return lambda *args, **kwargs: implementation(*args, **kwargs)

    expected = whole(model)
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", chosen_at_import(kernel))
    with scan.in_transformers():
        assert models.path(model) == "course"  # the model is on a CPU
        on_cpu, _ = read(model, IDS, [30, 10])
        assert calls == []
        monkeypatch.setattr(kernels, "can_run_on", lambda tensor: True)
        logits, _ = read(model, IDS, [30, 10])
    assert calls == 3 * [30]  # once per layer, and not for the second piece
    torch.testing.assert_close(on_cpu, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


# ---- every family with a state -------------------------------------------------------------------------------------


def families() -> list[str]:
    """The types of causal models that keep a state in transformers' Cache, by the layers of their configs."""
    found = []
    for model_type in CAUSAL:
        try:
            kinds, _ = get_layer_types_and_kwargs(shrunk(model_type).get_text_config(decoder=True))
        except Exception:  # transformers' own classes, which build no small config of this type
            continue
        if {"linear_attention", "conv", "hybrid", "hybrid_sliding"} & set(kinds):
            found.append(model_type)
    return found


def with_a_state_that_counts(model_type: str):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shrunk(model_type), dtype=torch.float32).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("dt_bias", "dt_proj.bias", "dt_proj_bias")):
                weight.uniform_(-5, -2)
            elif weight.ndim > 1 and "A_log" not in name:
                weight.normal_(0, 0.4 if "conv" in name else 0.2)
    return model


@torch.no_grad()
def error(model, positions: bool) -> float:
    """Of 40 tokens in pieces of 7, 13 and 20 against one forward, as a share of the largest logit."""
    cache, logits = None, []
    start = 0
    for piece in IDS.split([7, 13, 20], 1):
        end = start + piece.shape[1]
        given = {"position_ids": torch.arange(start, end).expand(len(piece), -1)} if positions else {}
        name = "cache_params" if model.config.model_type in STATE_ONLY else "past_key_values"
        output = model(piece, use_cache=True, **given, **({name: cache} if cache else {}))
        cache, start = cache_of(output), end
        logits.append(output.logits)
    expected = model(IDS, use_cache=False).logits
    return ((torch.cat(logits, 1) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.slow
@pytest.mark.parametrize("family", scan.CONTINUES)
def test_a_cache_of_this_family_goes_on_exactly_where_in_transformers_says_so(family):
    model = with_a_state_that_counts(family)
    exact = {}
    with scan.in_transformers() as said:
        exact["inside in_transformers"] = error(model, positions=False) < 1e-4
    exact["always"] = error(model, positions=False) < 1e-4
    if family not in STATE_ONLY:
        exact["with position_ids"] = error(model, positions=True) < 1e-4
    when = {
        "always": {"inside in_transformers": True, "always": True, "with position_ids": True},
        "inside in_transformers": {"inside in_transformers": True, "always": False, "with position_ids": False},
        "with position_ids": {"inside in_transformers": False, "always": False, "with position_ids": True},
    }
    assert exact.items() <= when[said[family]].items()


@pytest.mark.slow
def test_every_family_with_a_state_is_named_there_or_has_a_reason():
    """Types that share the text model of another are that one's; of recurrent_gemma no caller gets the cache."""
    with_images = {"qwen3_5", "qwen3_5_moe", "qwen4_exp"}
    assert set(families()) - with_images - {"recurrent_gemma"} == set(scan.CONTINUES)


# ---- kinds of numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8, torch.bool])
def test_an_integer_input_is_promoted_and_nothing_is_cut_off(dtype):
    given = inputs()
    given["u"] = (4 * given["u"]).abs().to(dtype)
    found, state = scan.selective_scan(**given, return_last_state=True)
    expected, last = scan.selective_scan(**given | {"u": given["u"].float()}, return_last_state=True)
    assert found.dtype == torch.float32 and torch.equal(found, expected) and torch.equal(state, last)


@pytest.mark.parametrize("name", ["delta", "A", "B", "C", "D", "z", "delta_bias"])
def test_any_other_integer_is_promoted_too(name):
    given = inputs()
    given[name] = (4 * given[name]).int()
    expected = scan.selective_scan(**given | {name: given[name].float()})
    assert torch.equal(scan.selective_scan(**given), expected)


@pytest.mark.parametrize("name", ["u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"])
def test_a_complex_input_is_refused_in_one_sentence(name):
    given = inputs() | {"initial_state": torch.zeros(2, 6, 4)}
    given[name] = given[name].to(torch.complex64)
    with pytest.raises(ValueError, match=f"^{name} is torch.complex64, and this scan is for real numbers"):
        scan.selective_scan(**given)
