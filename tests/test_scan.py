"""The selective scan is transformers' own, but differentiable, resumable and quick; and it leaves no trace there."""

import time

import pytest
import torch
from transformers import AutoModelForCausalLM, JambaConfig, MambaConfig
from transformers.models.jamba import modeling_jamba
from transformers.models.mamba import modeling_mamba

from shared import scan

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


@pytest.mark.parametrize("block", [2, 16])
def test_gradients_of_every_argument_are_right(monkeypatch, block):
    monkeypatch.setattr(scan, "BLOCK", block)
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


def test_wrong_shapes_are_named():
    given = inputs()
    with pytest.raises(ValueError, match=r"B has shape \(2, 9, 4\).*need \(2, 4, 9\)"):
        scan.selective_scan(**given | {"B": given["B"].transpose(1, 2)})


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_backward_takes_time_linear_in_the_length(one_thread):
    def seconds(T):
        given = inputs(B=1, D=64, N=16, T=T)
        given["u"].requires_grad_()
        best = float("inf")
        for _ in range(3):
            start = time.process_time()  # of this process: other work on the machine does not count
            scan.selective_scan(**given, delta_softplus=True).sum().backward()
            best = min(best, time.process_time() - start)
        return best

    assert seconds(2048) < 24 * seconds(256), "eight times the length: linear is 8, quadratic 64"


TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
JAMBA = {
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
}
CONFIGS = {"mamba": MambaConfig(**TINY), "jamba": JambaConfig(**TINY, **JAMBA, attn_layer_period=2)}


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_transformers_give_the_same_with_this_scan_and_generate(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
    ids = torch.randint(2, 32, (2, 12))
    with torch.no_grad():
        before, said = model(ids).logits, model.generate(ids, max_new_tokens=4, do_sample=False)
        with scan.in_transformers():
            module = modeling_mamba if name == "mamba" else modeling_jamba
            assert module.mamba_selective_scan is not REFERENCE
            torch.testing.assert_close(model(ids).logits, before, atol=1e-5, rtol=1e-5)
            assert torch.equal(model.generate(ids, max_new_tokens=4, do_sample=False), said)


def test_transformers_is_restored_even_after_an_error():
    before = modeling_mamba.mamba_selective_scan, modeling_jamba.mamba_selective_scan
    with pytest.raises(RuntimeError, match="inside"), scan.in_transformers(), scan.in_transformers():
        raise RuntimeError("inside")
    assert (modeling_mamba.mamba_selective_scan, modeling_jamba.mamba_selective_scan) == before


def test_a_compiled_kernel_is_not_replaced(monkeypatch):
    def wrapped():
        return implementation

    implementation = lambda: None  # noqa: E731
    implementation.__module__ = "mamba_ssm.ops.selective_scan_interface"
    monkeypatch.setattr(modeling_mamba, "mamba_selective_scan", wrapped)
    with scan.in_transformers():
        assert modeling_mamba.mamba_selective_scan is wrapped
