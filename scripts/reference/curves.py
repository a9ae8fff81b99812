"""Train what lab 2.4.2 shows beside its own short runs, and the recall models that ship.

    python scripts/reference/curves.py          (`make curves`) writes curves.json, and data/tiny/recall/

Every run is kept in build/curves/ as it ends, with its settings, and a second call takes from there what has the same
ones: an interrupted call goes on where it was. After a change of code or versions, `make clean` comes first.

curves.json holds shares of right answers; a list [...] by size has one number per seed:

    made               {machine, threads, versions, date, command, seconds: {experiment: s}}
    settings           {experiment: what its runs have in common}
    selective_copying  {variant: {seed: {steps: [...], accuracy: [...], final}}}: on each batch before it is trained on,
                       means of the steps up to each; and on new batches at the end
    induction          {variant: {length: [...], steps: [...]}}: trained at length 64 for so many steps
    recall             {specialist: {pairs: [...]}}: trained on 2 to 16 pairs of 32
    copying            {specialist: {length: [...]}}: the same models, trained on lengths 2 to 24 too
    specialists        {specialist: {parameters, training: {seed: {steps, recall, copying}}}}: two layers, trained on
                       recall and copying in turn; a number is the state size (16 without one, and then two seeds, of
                       which data/tiny/recall has the first)
    generalists        {tiny model: {first, second: {accuracy, bits}}}: a random string of tokens and its repetition

A variant is what of delta, B and C is computed from the input, none, delta, BC or all; or `attention`, a transformer of
the same width with about as many parameters.
"""

import shutil
import statistics
import sys
from collections.abc import Callable
from functools import partial

import torch
from parts import compact, keep
from transformers import AutoModelForCausalLM, GPTNeoXConfig, JambaConfig, MambaConfig
from transformers.utils import logging

from shared import files, models, results
from shared.files import BUILD, DATA
from shared.kits import tasks
from shared.notebooks import commands

PARTS, OUT = BUILD / "curves", DATA / "reference" / "curves.json"
SEEDS = (0, 1, 2)
VARIANTS = {"none": (), "delta": ("delta",), "BC": ("B", "C"), "all": ("delta", "B", "C"), "attention": None}


def neox(vocabulary: int, d_model: int) -> GPTNeoXConfig:
    """A transformer of two layers with rotary positions on all of each head, started from 1 / sqrt(width)."""
    return GPTNeoXConfig(
        vocab_size=vocabulary,
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=d_model**-0.5,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
        max_position_embeddings=4096,
    )


def model(variant: str, vocabulary: int, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    if variant == "attention":
        return AutoModelForCausalLM.from_config(neox(vocabulary, 32), dtype=torch.float32, trust_remote_code=False)
    return tasks.SelectiveModel(vocabulary, selects=VARIANTS[variant])


def binned(curve: list[float], size: int) -> list[float]:
    """Means of `size` values at a time."""
    return [round(statistics.mean(curve[i : i + size]), 3) for i in range(0, len(curve), size)]


# ---- experiments: each takes plain settings and returns what JSON can hold -----------------------------------------


def selective_copying(variant: str, seed: int, steps: int, size: int) -> dict:
    trained = model(variant, 10, seed)
    curve = tasks.train(trained, tasks.selective_copying, steps, seed)
    final = tasks.accuracy(trained, tasks.selective_copying, batches=16)
    return {"steps": list(range(size, steps + 1, size)), "accuracy": binned(curve, size), "final": round(final, 4)}


def induction(variant: str, seed: int, steps: int, enough: float, lengths: tuple[int, ...]) -> dict:
    trained = model(variant, 16, seed)
    taken = len(tasks.train(trained, tasks.induction, steps, seed, enough=enough))
    return {"steps": taken} | {
        str(length): round(tasks.accuracy(trained, partial(tasks.induction, length=length), batches=8, batch=32), 4)
        for length in lengths
    }


def small(variant: str, vocabulary: int, state_size: int):
    """Two layers of width 64: Mamba, Mamba then attention (Jamba's), or a transformer."""
    if variant == "transformer":
        return neox(vocabulary, 64)
    shape = {"vocab_size": vocabulary, "hidden_size": 64, "num_hidden_layers": 2}
    shape |= {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}  # a padding token is never learned
    if variant == "mamba":
        return MambaConfig(**shape, state_size=state_size)
    attention = {"num_attention_heads": 4, "num_key_value_heads": 4, "attn_layer_period": 2, "attn_layer_offset": 1}
    return JambaConfig(**shape, **attention, intermediate_size=32, num_experts=1, mamba_d_state=state_size)


def measured(trained: torch.nn.Module, task: tasks.Task, name: str, sizes: tuple[int, ...]) -> dict[str, float]:
    """Accuracy on the task at each size."""
    return {str(size): round(tasks.accuracy(trained, partial(task, **{name: size})), 4) for size in sizes}


class Mixture:
    """Recall and copying in random turns, each of a random size; `asked` keeps which it was."""

    def __init__(self, pairs: int, length: int):
        self.pairs, self.length, self.asked = pairs, length, []

    def __call__(self, batch: int, generator: torch.Generator):
        one, share = torch.rand(2, generator=generator).tolist()
        self.asked.append("recall" if one < 0.5 else "copying")
        if self.asked[-1] == "recall":
            return tasks.recall(batch, generator, pairs=2 + int(share * (self.pairs - 1)))
        return tasks.copying(batch, generator, length=2 + int(share * (self.length - 1)))


def specialists(variant: str, seed: int, steps: int, size: int, pairs: int, length: int, sizes: dict) -> dict:
    architecture, _, state_size = variant.partition("-")
    torch.manual_seed(seed)
    config = small(architecture, 65, int(state_size or 16))
    trained = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    task = Mixture(pairs, length)
    curve = tasks.train(trained, task, steps, seed, lr=3e-3)
    trained.save_pretrained(PARTS / f"{variant}-{seed}")
    ends = list(range(size, steps + 1, size))
    training = {"steps": ends}
    for name in ("recall", "copying"):
        asked = [[curve[i] for i in range(end - size, end) if task.asked[i] == name] for end in ends]
        training[name] = [round(statistics.mean(values), 3) for values in asked]
    return {
        "parameters": sum(parameter.numel() for parameter in trained.parameters()),
        "training": training,
        "recall": measured(trained, tasks.recall, "pairs", sizes["recall"]),
        "copying": measured(trained, tasks.copying, "length", sizes["copying"]),
    }


def generalists(variant: str) -> dict:
    return tasks.repetition(models.load(f"tiny/{variant}", dtype=torch.float32)[0])


# ---- the runs, each kept as it ends --------------------------------------------------------------------------------


def kept(experiment: Callable, **settings) -> dict:
    """The result of `experiment(**settings)` with its seconds, from build/curves/ if the same run is there."""
    what = [str(settings[name]) for name in ("variant", "seed") if name in settings]
    file = PARTS / f"{'-'.join([experiment.__name__, *what])}.json"
    return keep(file, settings, partial(experiment, **settings))


SHIPPED, ONCE = ("mamba", "hybrid", "transformer"), ("mamba-4", "mamba-2", "hybrid-2")
RUNS = {  # {experiment: ({variant: seeds}, what all its runs have in common)}
    selective_copying: (dict.fromkeys(VARIANTS, SEEDS), {"steps": 1000, "size": 20}),
    specialists: (
        dict.fromkeys(SHIPPED, SEEDS[:2]) | dict.fromkeys(ONCE, SEEDS[:1]),
        {
            "steps": 2000,
            "size": 40,
            "pairs": 16,
            "length": 24,
            "sizes": {"recall": (2, 4, 8, 16, 24, 32), "copying": (4, 8, 16, 24, 32, 48, 64)},
        },
    ),
    induction: (
        dict.fromkeys(("none", "all", "attention"), SEEDS),
        {"steps": 1500, "enough": 0.995, "lengths": (64, 128, 256, 512, 1024, 2048)},
    ),
}
GENERALISTS = ("mamba", "jamba", "transformer")


def settings() -> dict[str, dict]:
    return {experiment.__name__: common | {"seeds": seeds} for experiment, (seeds, common) in RUNS.items()}


def collected(parts: dict[tuple, dict]) -> dict:
    """curves.json, from the parts {(experiment, variant, seed): part}."""
    made = results.machine() | {"command": "make curves", "seconds": {}}
    found = {}
    for experiment, (variants, _) in RUNS.items():
        name = experiment.__name__
        made["seconds"][name] = round(sum(part["seconds"] for key, part in parts.items() if key[0] is experiment))
        found[name] = {
            variant: {str(seed): parts[experiment, variant, seed]["result"] for seed in seeds}
            for variant, seeds in variants.items()
        }

    def by_size(runs: dict[str, dict], what: str | None = None) -> dict[str, list]:
        """{size: one value per seed} from {seed: {size: value}}, or from {seed: {what: {size: value}}}."""
        runs = [run[what] if what else run for run in runs.values()]
        return {size: [run[size] for run in runs] for size in runs[0]}

    return {
        "made": made,
        "settings": settings(),
        "selective_copying": found["selective_copying"],
        "induction": {variant: by_size(runs) for variant, runs in found["induction"].items()},
        "recall": {variant: by_size(runs, "recall") for variant, runs in found["specialists"].items()},
        "copying": {variant: by_size(runs, "copying") for variant, runs in found["specialists"].items()},
        "specialists": {
            variant: {
                "parameters": next(iter(runs.values()))["parameters"],
                "training": {seed: run["training"] for seed, run in runs.items()},
            }
            for variant, runs in found["specialists"].items()
        },
        "generalists": {variant: generalists(variant) for variant in GENERALISTS},
    }


@commands.program("Interrupted: the runs that have ended are kept, and the same command goes on.")
def main() -> None:
    held = commands.alone("make curves", PARTS)  # noqa: F841  until the program ends
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # the note that the slow reference scan runs, which it does not
    logging.disable_progress_bar()
    parts = {
        (experiment, variant, seed): kept(experiment, variant=variant, seed=seed, **settings)
        for seed in SEEDS
        for experiment, (variants, settings) in RUNS.items()
        for variant, seeds in variants.items()
        if seed in seeds
    }
    for variant in SHIPPED:
        shutil.copytree(PARTS / f"{variant}-0", tasks.RECALL / variant, dirs_exist_ok=True)
        (tasks.RECALL / variant / "model.safetensors").chmod(0o644)  # it comes readable by its owner only
    files.write(OUT, compact(collected(parts)) + "\n")
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    sys.exit(main())
