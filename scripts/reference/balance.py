"""Train what lab 2.4.4 shows beside its own short runs: one small Mixture of Experts, balanced in five ways, or not.

    python scripts/reference/balance.py          (`make balance`) writes balance.json

Every run is kept in build/balance/ as it ends, with its settings, and a second call takes from there what has the same
ones: an interrupted call goes on where it was. After a change of code or versions, `make clean` comes first.

    made      {machine, threads, versions, date, command, seconds}
    settings  what all runs have in common: steps, size of a bin, weight of the loss, step u of the bias
    runs      {variant: {seed: {steps: [...], loss: [...], max_violation, dead: one list per layer, final}}}: means of
              the training steps up to each, loads of the same steps. final: {loss, bits_per_byte on the held-out text,
              and there, by layer, max_violation, variation, entropy, dead, mutual_information of expert and domain}

The variants balance nothing (`none`), or by one and the same loss over all layers together (`pooled`), each layer
(`layer`) or each sequence in each layer (`sequence`), or by a bias (`bias`). Two more balance nothing and differ in one
thing: the router does not learn (`frozen`), or each token goes to one expert, weighed by its probability instead of by
1 (`top-1`). Loss and bias are the answers of the lab.
"""

import math
import sys
from functools import partial

import torch
from parts import compact, keep
from torch import Tensor

from shared import data, files, notebooks, results
from shared.kits import moe
from shared.notebooks import commands

PARTS, OUT = files.BUILD / "balance", files.DATA / "reference" / "balance.json"
SEEDS = (0, 1, 2)
SETTINGS = {"steps": 400, "size": 20, "weight": 0.02, "u": 0.002}
VARIANTS = ("none", "pooled", "layer", "sequence", "bias", "frozen", "top-1")
answers, information = notebooks.solution("2.4.4"), notebooks.solution("2.4.3").mutual_information

# What the loss is the mean of: everything at once, each layer, or each sequence of each layer.
GROUPS = {
    "pooled": lambda layers: [torch.cat([logits.flatten(0, 1) for logits in layers])],
    "layer": lambda layers: [logits.flatten(0, 1) for logits in layers],
    "sequence": lambda layers: [sequence for logits in layers for sequence in logits],
}


def balance(variant: str, weight: float, top_k: int = 2) -> moe.Balance | None:
    """The loss of a variant, or None where it has none."""
    if variant not in GROUPS:
        return None
    return lambda layers: weight * answers.balancing_loss(GROUPS[variant](layers), top_k)


def by_layer(counts: Tensor) -> dict[str, list]:
    """The four numbers of the lab for counts (L, E)."""
    names = "max_violation", "variation", "entropy", "dead"
    rows = [answers.imbalance(layer) for layer in counts]
    return {name: [round(row[i], 4) for row in rows] for i, name in enumerate(names)}


def run(variant: str, seed: int, steps: int, size: int, weight: float, u: float) -> dict:
    torch.manual_seed(seed)
    model = moe.SmallMoE(**({"top_k": 1, "renormalise": False} if variant == "top-1" else {}))
    if variant == "frozen":
        for mixture in model.mixtures:
            mixture.router.requires_grad_(False)
    controller = partial(answers.bias_step, u=u) if variant == "bias" else None
    history = moe.train(model, steps, seed, balance(variant, weight), controller)
    bins = [by_layer(counts) for counts in history.counts.unflatten(0, (-1, size)).sum(1)]
    loss, counts = moe.evaluate(model)
    per_byte = sum(map(len, moe.tokens("heldout").values())) / sum(
        len(text.encode()) for text in data.tiny_text("heldout").values()
    )
    final = {"loss": round(loss, 4), "bits_per_byte": round(loss / math.log(2) * per_byte, 4)}
    final |= by_layer(counts.sum(0))
    final["mutual_information"] = [round(nats, 4) for nats in information(counts.transpose(0, 1).double()).tolist()]
    return {
        "steps": list(range(size, steps + 1, size)),
        "loss": [round(value, 4) for value in history.loss.unflatten(0, (-1, size)).mean(1).tolist()],
        **{
            name: [list(layer) for layer in zip(*(b[name] for b in bins), strict=True)]
            for name in ("max_violation", "dead")
        },
        "final": final,
    }


@commands.program("Interrupted: the runs that have ended are kept, and the same command goes on.")
def main() -> None:
    held = commands.alone("make balance", PARTS)  # noqa: F841  until the program ends
    torch.set_num_threads(1)
    parts = {
        (variant, seed): keep(PARTS / f"{variant}-{seed}.json", SETTINGS, partial(run, variant, seed, **SETTINGS))
        for seed in SEEDS
        for variant in VARIANTS
    }
    seconds = round(sum(part["seconds"] for part in parts.values()))
    content = {
        "made": results.machine() | {"command": "make balance", "seconds": seconds},
        "settings": SETTINGS | {"seeds": SEEDS},
        "runs": {v: {str(seed): parts[v, seed]["result"] for seed in SEEDS} for v in VARIANTS},
    }
    files.write(OUT, compact(content) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
