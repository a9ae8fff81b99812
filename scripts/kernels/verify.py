"""Do the compiled kernels compute the right thing? Each is compared with float64, forward and backward, in both dtypes.

`make kernels` installs nothing that `verify` finds wrong. The truth is the definition of each function and the course's
own scan, which the tests compare with transformers' reference.
"""

import argparse
import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from shared.machine.kernels import FUNCTIONS, chosen

# The largest error, as a share of the largest value. float32: the kernels' fast exponential, and sums in another order.
# bfloat16: a value has 8 bits, and a gradient is summed from such values. What is wrong is wrong by far more.
TOLERANCE = {"float32": 1e-3, "bfloat16": 8e-2}


@dataclass(frozen=True)
class Check:
    """One comparison with float64: the largest error of outputs and gradients, each as a share of its largest value.

    code: the module whose function was called. worst: the output or gradient that is furthest off, or the error raised.
    """

    name: str
    code: str
    dtype: str
    error: float
    worst: str
    passed: bool


def _inputs(dtype, length: int, device) -> dict[str, dict]:
    """What a mixer hands to each function: activations and projections in `dtype`, A, D, bias and state in float32."""
    import torch

    generator = torch.Generator().manual_seed(0)
    batch, width, states, rank, taps = 2, 64, 16, 4, 4

    def tensor(*shape, scale=1.0, kind=dtype):
        return (scale * torch.randn(*shape, generator=generator)).to(device, kind)

    single = functools.partial(tensor, kind=torch.float32)
    x, z, delta = (tensor(batch, width, length) for _ in range(3))
    B, C = (tensor(batch, states, length) for _ in range(2))
    conv = {"weight": tensor(width, taps, scale=0.5), "bias": tensor(width)}
    D, bias = single(width), single(width)
    A = -torch.arange(1.0, states + 1, device=device).repeat(width, 1)
    update = {"state": single(batch, width, states), "u": x[..., 0], "delta": delta[..., 0], "z": z[..., 0]}
    update |= {"A": A, "B": B[..., 0], "C": C[..., 0], "D": D.to(dtype), "bias": bias}
    inner = {"xz": tensor(batch, 2 * width, length), "conv": conv["weight"][:, None], "conv_bias": conv["bias"]}
    inner |= {"x_proj": tensor(rank + 2 * states, width, scale=width**-0.5), "A": A, "D": D, "bias": bias}
    inner |= {"dt_proj": tensor(width, rank, scale=0.5), "out_proj": tensor(width // 2, width, scale=width**-0.5)}
    return {
        "causal_conv1d_fn": {"x": x, **conv},
        "causal_conv1d_update": {"x": x[..., :1], "state": tensor(batch, width, taps), **conv},
        "mamba_selective_scan": {"u": x, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z, "bias": bias},
        "mamba_selective_state_update": update,
        "mamba_inner_fn": inner,
    }


def _call(name: str, function: Callable, x: dict) -> dict | None:
    """Call a function as the mixers of transformers call it; its outputs, and what it wrote into a state, by name."""
    if name == "causal_conv1d_fn":
        return {"output": function(x["x"], x["weight"], x["bias"], activation="silu")}
    if name == "causal_conv1d_update":
        output = function(x["x"], x["state"], x["weight"], x["bias"], activation="silu")
        return {"output": output, "new state": x["state"]}
    if name == "mamba_selective_scan":
        rest = {"z": x["z"], "delta_bias": x["bias"], "delta_softplus": True, "return_last_state": True}
        output, last = function(x["u"], x["delta"], x["A"], x["B"], x["C"], D=x["D"], **rest)
        return {"output": output, "last state": last}
    if name == "mamba_selective_state_update":
        rest = {"z": x["z"], "dt_bias": x["bias"], "dt_softplus": True}
        output = function(x["state"], x["u"], x["delta"], x["A"], x["B"], x["C"], x["D"], **rest)
        return {"output": output, "new state": x["state"]}
    weights = (x[part] for part in ("conv", "conv_bias", "x_proj", "dt_proj", "out_proj"))
    rest = {"delta_bias": x["bias"], "delta_softplus": True}
    output = function(x["xz"], *weights, None, x["A"], None, None, x["D"], **rest)
    return None if output is None else {"output": output}  # the library's own is empty: the mixer does it in parts


def _truth() -> dict[str, Callable]:
    """The same five functions, from their definitions and the course's scan, exact in float64."""
    import torch
    import torch.nn.functional as F

    from shared.scan import selective_scan

    def conv(x, weight, bias, activation):
        return F.silu(F.conv1d(F.pad(x, (weight.shape[1] - 1, 0)), weight[:, None], bias, groups=len(weight)))

    def conv_update(x, state, weight, bias, activation):
        state.copy_(torch.cat([state, x], 2)[..., 1:])
        return F.silu((state * weight).sum(2, keepdim=True) + bias[:, None])

    def state_update(state, u, delta, A, B, C, D, z, dt_bias, dt_softplus):
        step = [x[..., None] for x in (u, delta)]
        rest = {"z": z[..., None], "delta_bias": dt_bias, "delta_softplus": True, "return_last_state": True}
        y, last = selective_scan(*step, A, B[..., None], C[..., None], D, **rest, initial_state=state)
        state.copy_(last)
        return y[..., 0]

    def inner(xz, weight, bias, x_proj, dt_proj, out_proj, _, A, B, C, D, delta_bias, delta_softplus):
        x, z = xz.chunk(2, 1)
        x = conv(x, weight[:, 0], bias, "silu")
        delta, B, C = (x_proj @ x).split([dt_proj.shape[1], A.shape[1], A.shape[1]], 1)
        y = selective_scan(x, dt_proj @ delta, A, B, C, D, z, delta_bias, True)
        return F.linear(y.transpose(1, 2), out_proj)

    return dict(zip(FUNCTIONS, (conv, conv_update, selective_scan, state_update, inner), strict=True))


def _results(name: str, function: Callable, inputs: dict, generator) -> dict | None:
    """Outputs and, where the function is one that trains, the gradient of every input, by name."""
    import torch

    trains = not name.endswith("update")
    inputs = {key: value.clone().requires_grad_(trains) for key, value in inputs.items()}
    with torch.set_grad_enabled(trains):
        results = _call(name, function, inputs)
    if results is None or not trains:
        return results
    output = results["output"]
    weights = torch.randn(output.shape, generator=generator).to(output)
    output.backward(weights)
    return {**results, **{f"gradient of {key}": value.grad for key, value in inputs.items()}}


def _error(result, truth) -> float:
    """Largest difference as a share of the largest value; infinite where a tensor or a number is missing."""
    if result is None or result.shape != truth.shape or not result.isfinite().all():
        return float("inf")
    return ((result.double() - truth).abs().max() / truth.abs().max()).item()


def verify(
    device="cuda", length: int = 2100, functions: dict[str, Callable] | None = None, names=FUNCTIONS
) -> list[Check]:
    """Compare each function that transformers would run on a GPU with float64, forward and backward, in both dtypes.

    Args:
        length: steps of the sequence; the kernels work through 2,048 at a time, so the default has a second piece.
        functions: others in their place, by a name of `FUNCTIONS`.
        names: the functions to compare.
    """
    import torch
    from transformers.models.mamba import modeling_mamba

    functions = {name: chosen(getattr(modeling_mamba, name)) for name in FUNCTIONS} | (functions or {})
    truths, checks = _truth(), []
    for dtype in (torch.float32, torch.bfloat16):
        kind = str(dtype).removeprefix("torch.")
        for name, inputs in _inputs(dtype, length, device).items():
            if name not in names:
                continue
            exact = {key: value.double() for key, value in inputs.items()}
            truth = _results(name, truths[name], exact, torch.Generator().manual_seed(1))
            try:
                results = _results(name, functions[name], inputs, torch.Generator().manual_seed(1))
            except Exception as problem:  # a kernel that cannot be called is a finding, whatever it raises
                error, worst = float("inf"), f"{type(problem).__name__}: {problem}"[:200]
            else:
                if results is None:
                    continue
                errors = {key: _error(results.get(key), value.detach()) for key, value in truth.items()}
                worst = max(errors, key=errors.get)
                error = errors[worst]
            checks.append(Check(name, functions[name].__module__, kind, error, worst, error <= TOLERANCE[kind]))
    return checks


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare the kernels with float64 and print the comparison as JSON.")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--length", type=int, default=2100)
    options = parser.parse_args()
    print(json.dumps([asdict(check) for check in verify(options.device, options.length)]))
