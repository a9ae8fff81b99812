"""Train what lab 2.4.2 shows of one recurrence with four updates: recall by the update, and by the size of the state.

    python scripts/reference/recurrences.py   (`make recurrences`) writes recurrences.json

Every run is kept in build/recurrences/ as it ends, with its settings, and a second call takes from there what has the
same ones: an interrupted call goes on where it was. After a change of code or versions, `make clean` comes first.

    made        {machine, threads, versions, date, command, seconds}
    settings    what all runs have in common
    parameters  {update: {N: of the whole model}}
    state_bytes {N: of the whole model, in float32}
    recall      {update: {N: {pairs: [share of right answers, one per seed]}}}: trained on 2 to 16 pairs of 32

The models differ in how the state changes and in nothing else: two blocks of width 32, a state S of N keys by 64
values, which linear attention keeps as one, and Mamba-2 and Gated DeltaNet in four heads with a gate each.
"""

import math
import sys
from functools import partial

import torch
import torch.nn.functional as F
from parts import compact, keep
from torch import Tensor, nn

from shared import files, results
from shared.kits import tasks
from shared.notebooks import commands
from shared.scan import selective_scan

PARTS, OUT = files.BUILD / "recurrences", files.DATA / "reference" / "recurrences.json"
SEEDS = (0, 1, 2)
UPDATES = ("linear attention", "Mamba", "Mamba-2", "Gated DeltaNet")
D_MODEL, HEADS, LAYERS = 32, 4, 2
VALUES = 2 * D_MODEL  # the width of the state
SIZES = (4, 16, 32)  # N: from the smallest to the largest the state grows eight times, as from Mamba to Mamba-2
SETTINGS = {"steps": 1000, "most": 16, "pairs": (2, 4, 8, 16, 24, 32)}


class Block(nn.Module):
    """A block of Mamba-2's form: projection, short convolution, the recurrence, gate, norm, projection.

    Args:
        N: keys of the state S (N, 64).
        update: one of UPDATES. Every one reads y_t = S_t' q_t; lab 2.4.2 has the update as a line.
    """

    def __init__(self, N: int, update: str):
        super().__init__()
        self.update = update
        self.parts = [VALUES, VALUES + 2 * N, HEADS, HEADS]  # gate; values, keys and queries; delta; beta
        self.mixed = [VALUES, N, N]
        channels = sum(self.mixed)
        self.norm = nn.RMSNorm(D_MODEL)
        self.in_proj = nn.Linear(D_MODEL, sum(self.parts), bias=False)
        self.conv1d = nn.Conv1d(channels, channels, 4, groups=channels, padding=3)
        self.D = nn.Parameter(torch.ones(VALUES))
        self.out_norm = nn.RMSNorm(VALUES)
        self.out_proj = nn.Linear(VALUES, D_MODEL, bias=False)
        if update == "linear attention":
            return
        rates = N if update == "Mamba" else HEADS
        self.A_log = nn.Parameter(torch.arange(1.0, rates + 1).log())
        gates = HEADS
        if update == "Mamba":
            gates = VALUES
            self.dt_proj = nn.Linear(HEADS, VALUES, bias=False)
            self.A_log = nn.Parameter(self.A_log.detach().repeat(VALUES, 1))
        delta = torch.exp(math.log(1e-3) + math.log(100) * torch.rand(gates))  # from 0.001 to 0.1, as in Mamba
        self.dt_bias = nn.Parameter(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus

    def forward(self, x: Tensor) -> Tensor:
        """x (batch, T, D_MODEL), the residual stream, to the same."""
        gate, mixed, rate, beta = self.in_proj(self.norm(x)).split(self.parts, 2)
        mixed = F.silu(self.conv1d(mixed.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        v, k, q = mixed.split(self.mixed, 2)
        y = self.read(v, k, q, rate, beta) + self.D * v
        return x + self.out_proj(self.out_norm(y * F.silu(gate)))

    def read(self, v: Tensor, k: Tensor, q: Tensor, rate: Tensor, beta: Tensor) -> Tensor:
        """What each step reads, (batch, T, 64). v: (batch, T, 64), k, q: (batch, T, N), rate, beta: a number a head."""
        if self.update == "linear attention":
            return additive(q, k, v.unsqueeze(1), torch.zeros_like(rate[..., :1])).squeeze(1)
        if self.update == "Mamba":
            delta = F.softplus(self.dt_proj(rate) + self.dt_bias)
            turned = (given.transpose(1, 2) for given in (v, delta, k, q))
            u, delta, B, C = turned
            y = selective_scan(u, delta, -self.A_log.exp(), B, C)
            assert isinstance(y, Tensor)  # the last state was not asked for
            return y.transpose(1, 2)
        delta = F.softplus(rate + self.dt_bias)
        log_decay = -delta * self.A_log.exp()
        in_heads = v.unflatten(2, (HEADS, -1)).transpose(1, 2)  # (batch, HEADS, T, 16)
        if self.update == "Mamba-2":
            y = additive(q, k, in_heads * heads_first(delta), log_decay)
        else:
            k, q = F.normalize(k, dim=2), F.normalize(q, dim=2)
            y = correcting(q, k, in_heads, log_decay, beta.sigmoid())
        return y.transpose(1, 2).flatten(2)


def heads_first(gate: Tensor) -> Tensor:
    """A number per step and head, (batch, T, heads), as (batch, heads, T, 1)."""
    return gate.transpose(1, 2).unsqueeze(3)


def fading(log_decay: Tensor) -> Tensor:
    """What is left at step i of what step j wrote, (batch, heads, i, j), from log_decay (batch, T, heads)."""
    sums = heads_first(log_decay.cumsum(1))
    T = log_decay.shape[1]
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    return (sums - sums.transpose(2, 3)).masked_fill(later, -math.inf).exp()


def additive(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
    """S_t = a_t S_{t-1} + k_t v_t', read by q_t: the sequence as one chunk. v and result: (batch, heads, T, P)."""
    return ((q @ k.transpose(1, 2)).unsqueeze(1) * fading(log_decay)) @ v


def correcting(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor) -> Tensor:
    """S_t = a_t S_{t-1} + k_t (beta_t (v_t - a_t S_{t-1}' k_t))': what is written is known once all before it is.

    So it solves a triangular system, and what it writes is added (Yang and others 2024, section 3.2).
    """
    beta = heads_first(beta)
    before = ((k @ k.transpose(1, 2)).unsqueeze(1) * fading(log_decay)).tril(-1)
    written = torch.linalg.solve_triangular(
        beta * before + torch.eye(q.shape[1]), beta * v, upper=False, unitriangular=True
    )
    return additive(q, k, written, log_decay)


class Model(tasks.SelectiveModel):
    """Embedding, two blocks, norm and head."""

    def __init__(self, N: int, update: str):
        super().__init__(vocabulary=64, d_model=D_MODEL, layers=0)
        self.blocks = nn.ModuleList(Block(N, update) for _ in range(LAYERS))


def up_to(most: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A batch of recall with a random number of pairs, from 2 to `most`."""
    share = torch.rand(1, generator=generator).item()
    return tasks.recall(batch, generator, pairs=2 + int(share * (most - 1)))


def run(update: str, N: int, seed: int, steps: int, most: int, pairs: tuple[int, ...]) -> dict:
    torch.manual_seed(seed)
    model = Model(N, update)
    tasks.train(model, partial(up_to, most), steps, seed, lr=5e-3)
    right = {str(n): round(tasks.accuracy(model, partial(tasks.recall, pairs=n)), 4) for n in pairs}
    return {"parameters": sum(p.numel() for p in model.parameters()), "right": right}


def kept(update: str, N: int, seed: int) -> dict:
    """The result of a run with its seconds, from build/recurrences/ if the same one is there."""
    file = PARTS / f"{update.replace(' ', '-')}-{N}-{seed}.json"
    return keep(file, SETTINGS, partial(run, update, N, seed, **SETTINGS))


def collected(parts: dict[tuple, dict]) -> dict:
    """recurrences.json, from the parts {(update, N, seed): part}."""

    def by_pairs(update: str, N: int) -> dict[str, list[float]]:
        runs = [parts[update, N, seed]["result"]["right"] for seed in SEEDS]
        return {pairs: [run[pairs] for run in runs] for pairs in runs[0]}

    seconds = round(sum(part["seconds"] for part in parts.values()))
    return {
        "made": results.machine() | {"command": "make recurrences", "seconds": seconds},
        "settings": SETTINGS | {"seeds": SEEDS},
        "parameters": {u: {str(N): parts[u, N, 0]["result"]["parameters"] for N in SIZES} for u in UPDATES},
        "state_bytes": {str(N): LAYERS * N * VALUES * torch.float32.itemsize for N in SIZES},
        "recall": {u: {str(N): by_pairs(u, N) for N in SIZES} for u in UPDATES},
    }


@commands.program("Interrupted: the runs that have ended are kept, and the same command goes on.")
def main() -> None:
    held = commands.alone("make recurrences", PARTS)  # noqa: F841  until the program ends
    torch.set_num_threads(1)
    parts = {(u, N, seed): kept(u, N, seed) for seed in SEEDS for N in SIZES for u in UPDATES}
    files.write(OUT, compact(collected(parts)) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
