"""Times the course's selective scan beside transformers' reference path and mambapy's parallel scan (`make bench`).

Every round times all of them one after another, so that other work on the machine meets all alike; a ratio is the
median of the rounds' ratios. Extra memory is the peak above the inputs (GB = 1e9 bytes), of a run that is not timed. On
a GPU mamba-ssm's kernel stands beside them. The rows go to build/results/scan.csv too.

Then what `memory.track` adds to a forward of Mamba-130M (random weights) and to a loop of many small operations.
"""

import contextlib
import inspect
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from transformers.models.mamba import modeling_mamba
from transformers.utils import logging

from shared import data, memory, models, results, scan, timing
from shared.machine import meters
from shared.notebooks import commands
from shared.scan import selective_scan

N = 16
FORWARD = [(1, 1536, T) for T in (512, 1024, 4096)] + [(1, 128, T) for T in (256, 1024, 4096, 16384)]
TRAINING = [(4, 128, T) for T in (256, 512, 1024, 2048, 4096, 16384)]
CUDA = [(1, 1536, 2**k) for k in range(10, 17)]
LONGEST = {  # beyond, the reference takes minutes (its backward grows with T^2), and mambapy many GB
    "reference": {"forward": 4096, "training": 1024},
    "mambapy": {"forward": 4096, "training": 4096},
}
LEAST, MOST = 1, 60  # seconds: rounds go on at least so long, and after so long none begins


def implementations(device: str) -> dict[str, Callable]:
    """What can be timed here, by name; says in a sentence how to get what cannot."""
    reference = inspect.unwrap(modeling_mamba.mamba_selective_scan)  # also where transformers has chosen the kernel
    found = {"reference": reference, "course": selective_scan}
    try:
        import mambapy  # noqa: F401

        found["mambapy"] = lambda *args, **kwargs: reference(*args, **kwargs, use_mambapy=True)
    except ImportError:
        print("mambapy is not timed: it is not installed; `.venv/bin/python -m pip install -e '.[bench]'` installs it.")
    if device == "cuda":
        try:
            from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

            found["kernel"] = selective_scan_fn
        except ImportError:
            print("mamba-ssm's kernel is not timed: it is not installed; `make kernels` builds it.")
    return found


def run(function: Callable, shape: tuple[int, int, int], device: str, train: bool) -> Callable[[], torch.Tensor]:
    """A call of `function` on random inputs (batch, width, T) like those in a trained Mamba, ready to be timed."""
    batch, D, T = shape
    generator = torch.Generator().manual_seed(0)
    u, z, delta = torch.randn(3, batch, D, T, generator=generator).to(device)
    B, C = torch.randn(2, batch, N, T, generator=generator).to(device)
    A = -torch.arange(1.0, N + 1, device=device).repeat(D, 1)
    skip, bias = torch.ones(D, device=device), torch.full((D,), -4.0, device=device)  # delta around 0.02
    tensors = [x.requires_grad_(train) for x in (u, delta, A, B, C, skip, z, bias)]

    def call():
        y = function(*tensors[:5], D=tensors[5], z=tensors[6], delta_bias=tensors[7], delta_softplus=True)
        if train:
            torch.autograd.grad(y.sum(), tensors)
        return y.detach()

    return call


def measure(found: dict[str, Callable], what: str, shape: tuple[int, int, int], device: str, rounds: int) -> dict:
    """One row of the table: medians of seconds, ratios to the course's scan, peak bytes."""
    train, T = what == "training", shape[2]
    calls = {
        name: run(function, shape, device, train)
        for name, function in found.items()
        if LONGEST.get(name, {}).get(what, T) >= T
    }
    row = {"what": what, "device": device, "batch": shape[0], "width": shape[1], "length": T}
    outputs = {}
    for name, call in calls.items():  # the first run of each, which is slow, is the one whose memory is tracked
        with memory.track(device) as tracked:
            outputs[name] = call()
        row[f"{name} GB"] = tracked.peak_bytes / 1e9
    for name, y in outputs.items():
        torch.testing.assert_close(y, outputs["course"], atol=1e-3, rtol=1e-3, msg=f"{name} computes something else")
    # One thread on a CPU: its processor time, so that what other processes take does not count.
    clock = time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    seconds, began = {name: [] for name in calls}, time.perf_counter()
    while (spent := time.perf_counter() - began) < LEAST or (spent < MOST and len(seconds["course"]) < rounds):
        for name, call in calls.items():
            timing.synchronize(device)
            start = clock()
            call()
            timing.synchronize(device)
            seconds[name].append(clock() - start)
    for name, values in seconds.items():
        row[f"{name} ms"] = 1e3 * statistics.median(values)
        if name != "course":
            ratios = [theirs / ours for theirs, ours in zip(values, seconds["course"], strict=True)]
            row[f"{name}/course"] = statistics.median(ratios)
    return row


def slope(lengths, seconds) -> tuple[float, float]:
    """Exponent of the growth of time with length, by least squares on log axes, and its standard error."""
    (gradient, _), covariance = np.polyfit(np.log(lengths), np.log(seconds), 1, cov=True)
    return gradient, covariance[0, 0] ** 0.5


def tracking(name: str, work: Callable[[], object], rounds: int) -> None:
    """Print how much more `work` takes inside `memory.track` than without, and than itself without once more: quartiles
    over rounds. What the second says is noise, the first says nothing where it is no larger.

    Of the processor's time, the thread that samples included: other work on the machine counts less there.
    """

    def seconds(tracked: bool) -> float:
        # Without it too garbage is collected and the heap trimmed before, which is no part of the forward.
        with memory.track("cpu") if tracked else contextlib.nullcontext(meters.Host().settle()):
            start = time.process_time()
            work()
            return time.process_time() - start

    seconds(True), seconds(False)
    order, taken = ["without", "with", "again"], []
    for _ in range(rounds):
        taken.append({way: seconds(way == "with") for way in order})
        order = order[1:] + order[:1]
    print(f"{name:26} {statistics.median(each['without'] for each in taken):6.2f} s", end="")
    for way, said in (("with", "tracked"), ("again", "untracked again")):
        low, middle, high = timing.quartiles([each[way] / each["without"] - 1 for each in taken])
        print(f"  {said} {middle:+.1%} ({low:+.1%} to {high:+.1%})", end="")
    print()


@torch.inference_mode()
def many_small(count: int) -> None:
    """The worst case: between any two operations the interpreter can change hands."""
    x = torch.zeros(1)
    for _ in range(count):
        x = x + 1


def show_tracking() -> None:
    print(f"What memory.track adds to a block (the thread that samples may take {memory.SHARE[True]:.1%} of its time)")
    model, _ = models.load("mamba-130m", dtype=torch.float32, weights="random", device="cpu")

    def forward(tokens: int) -> None:
        with torch.inference_mode(), scan.in_transformers():
            models.forward(model, ids[tokens])

    ids = data.random_tokens(model.config.vocab_size, [16, 512, 2048])
    for tokens, rounds in {16: 60, 512: 12, 2048: 6}.items():
        tracking(f"Mamba-130M, {tokens} tokens", lambda tokens=tokens: forward(tokens), rounds)
    for count, rounds in {40_000: 60, 400_000: 12}.items():
        tracking(f"{count:,} small operations", lambda count=count: many_small(count), rounds)


def show(rows: list[dict]) -> None:
    frame = pd.DataFrame(rows).dropna(axis=1, how="all")
    order = [name for unit in (" ms", "/course", " GB") for name in frame if name.endswith(unit)]
    formats = {name: f"{{:,.{digits}f}}".format for name in order for digits in [3 if name.endswith("GB") else 1]}
    print(frame[["batch", "width", "length", *order]].to_string(index=False, na_rep="-", formatters=formats), "\n")


@commands.program()
def main(arguments: list[str] | None = None) -> None:
    parser = commands.Parser(__doc__)
    parser.add_argument(
        "--rounds", type=commands.whole("--rounds"), default=5, help="how often each is timed at least (default 5)"
    )
    parser.add_argument("--longest", type=commands.whole("--longest"), default=2**16, help="leave out longer sequences")
    options = parser.parse_args(arguments)
    logging.set_verbosity_error()  # the note that the reference runs, which is meant
    print(", ".join(f"{name} {value}" for name, value in results.machine().items()), "\n")
    rows = []
    for device, plan in (
        ("cpu", {"forward": FORWARD, "training": TRAINING}),
        ("cuda", {"forward": CUDA, "training": CUDA}),
    ):
        if device == "cuda" and not torch.cuda.is_available():
            print("On a GPU, 1K to 64K: not measured, there is no GPU here.\n")
            continue
        found = implementations(device)
        for what, shapes in plan.items():
            print(f"{'Forward' if what == 'forward' else 'Forward and backward'}, {device}, float32, N = {N}")
            table = [measure(found, what, s, device, options.rounds) for s in shapes if s[2] <= options.longest]
            show(table)
            rows += table
    training = [row for row in rows if row["what"] == "training" and row["device"] == "cpu"]
    if len(training) > 2:
        gradient, error = slope(*([row[name] for row in training] for name in ("length", "course ms")))
        print(f"Time of forward and backward grows with length to the power {gradient:.2f} +- {error:.2f} (course).")
    print(f"Saved to {results.save(pd.DataFrame(rows), 'scan')}.\n")
    show_tracking()


if __name__ == "__main__":
    sys.exit(main())
