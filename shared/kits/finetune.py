"""What lab 2.4.6 needs beside what it teaches: instructions, small base models, Trainer's settings, exact match.

The instructions and the two base models (data/tiny/instruct) are made by `make finetune`. The bases know some skills on
pairs of words ("Name the last word."); one skill they have never seen. A pair of the held-out split stands in no
training example of any skill.
"""

import ctypes
import hashlib
import itertools
import json
import os
import shutil
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from shared import data, files, models, results
from shared.errors import BadInput, DiskFull, NotEnoughMemory
from shared.machine import guard, pool
from shared.models.cards import published_config
from shared.units import human

INSTRUCT = files.DATA / "tiny" / "instruct"
BASES = ("mamba", "transformer")
SPLITS = ("train", "heldout")
OLD, NEW = ("copy", "first", "last"), ("swap",)  # what the bases know, and what they have never seen

# ---- data and models ------------------------------------------------------------------------------------------------


def instructions(split: str, skills: str | Sequence[str] = OLD + NEW) -> list[dict[str, str]]:
    """The shipped examples of a split ("train", "heldout"), in Alpaca's fields, with their "skill"."""
    if split not in SPLITS:
        raise BadInput(f"The instructions have the splits {' and '.join(map(repr, SPLITS))}, not {split!r}.")
    skills = data.several(skills, str)
    if unknown := set(skills) - {*OLD, *NEW}:
        raise BadInput(f"There is no skill {sorted(unknown)}: the skills are {', '.join(OLD + NEW)}.")
    lines = (INSTRUCT / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [example for example in map(json.loads, lines) if example["skill"] in skills]


def prompt(example: Mapping[str, str]) -> str:
    """An example up to where the response begins."""
    return data.format_instruction({**example, "output": ""})


def examples(
    scale: str, weights: str = "trained", most: int = 1000
) -> tuple[list[dict], list[dict], list[dict], list[dict]]:
    """What a scale trains on: (new, new held out, old, old held out), `most` examples of each at the most.

    At scale full `most` of Alpaca, a tenth of them held out, of which nothing is old. Random weights learn nothing from
    that: there the shipped examples do, without a download.
    """
    if scale == "full" and weights == "trained":
        rows = data.alpaca(most).to_list()
        train = most * 9 // 10
        return rows[:train], rows[train:], [], []
    new, new_held_out, old, old_held_out = (
        instructions(split, skills)[:most] for skills in (NEW, OLD) for split in SPLITS
    )
    return new, new_held_out, old, old_held_out


def eight_prompts(scale: str, weights: str, tokenizer, device) -> dict[str, torch.Tensor]:
    """A batch on a device with which to look at gradients: eight prompts of a scale, which are their labels too.

    Each is cut to the length of the shortest, so that nothing is padding.
    """
    new, *_ = examples(scale, weights, 8)
    rows = [tokenizer(prompt(example))["input_ids"] for example in new]
    shortest = min(map(len, rows))
    ids = torch.tensor([row[:shortest] for row in rows], device=device)
    return {"input_ids": ids, "labels": ids}


def windows(tokenizer, most: int, tokens: int = 256) -> list[dict[str, list[int]]]:
    """WikiText-2 as rows to train on, at the most so many: windows of a text, in which every token is learned."""
    ids = tokenizer(data.wikitext("2"), verbose=False)["input_ids"]
    rows = [ids[start : start + tokens] for start in range(0, len(ids), tokens)]
    return [{"input_ids": row, "labels": row} for row in rows[:most]]


def base(name: str, weights: str = "trained"):
    """(model, tokenizer): a shipped base in float32, or one of the course in bfloat16. Raises as `models.load`.

    From here on a warning goes unsaid: peft asks every model for an attribute that transformers renamed, and the answer
    is the same.
    """
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
    if name not in BASES:
        model, tokenizer = models.load(name, weights=weights)
        return model, tokenizer or models.tiny_tokenizer()
    device = pool.pick_device()
    tokenizer = models.tokenizer_of(INSTRUCT / "tokenizer")
    if weights == "random":
        config = AutoConfig.from_pretrained(INSTRUCT / name, trust_remote_code=False)
        return models.from_config(config, torch.float32, device), tokenizer
    return models.from_folder(INSTRUCT / name, torch.float32, device), tokenizer


def on_meta(name: str) -> nn.Module:
    """A model of the course as shapes alone, without memory or download."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(published_config(name), trust_remote_code=False)


def for_memory(architecture: str, scale: str, full: bool) -> nn.Module:
    """A "mamba" or "transformer" with random weights, large enough to measure: some 8M parameters at scale tiny, the
    1.4B pair at scale full, there in float32 for `full` fine-tuning and else in bfloat16."""
    device = pool.pick_device()
    if scale == "full":
        name = {"mamba": "mamba-1.4b", "transformer": "pythia-1.4b"}[architecture]
        return models.load(name, dtype=torch.float32 if full else torch.bfloat16, weights="random")[0]
    config = AutoConfig.from_pretrained(files.DATA / "tiny" / architecture, trust_remote_code=False)
    config.hidden_size = 384
    if architecture == "mamba":
        config.intermediate_size, config.time_step_rank = 768, 24
    else:
        config.intermediate_size = 1536
    return models.from_config(config, torch.float32, device)


def check_room(model: nn.Module, training_bytes: int) -> None:
    """Before the first step: raise NotEnoughMemory where what a training holds, the model included, does not fit."""
    there = sum(p.numel() * p.element_size() for p in model.parameters())
    needed, free = training_bytes - there, guard.budget(model.device)
    if needed > free:
        raise NotEnoughMemory(
            f"Beside its weights this training needs {human(needed)} on {model.device}, before activations, and "
            f"{human(free)} are available: train adapters, or a smaller model."
        )


# ---- measuring ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def answers(model: nn.Module, tokenizer, examples: Sequence[Mapping[str, str]], new_tokens=8, batch=100) -> list[str]:
    """What the model writes, greedily, for each example (or the one that is given), up to its end-of-text token.

    A response that does not end within `new_tokens` carries a mark, so that it equals no output.
    """
    examples = data.several(examples, Mapping)
    was_training, found = model.training, []
    device, pad = model.device, tokenizer.pad_token_id
    model.eval()
    for start in range(0, len(examples), batch):
        ids = [tokenizer(prompt(example))["input_ids"] for example in examples[start : start + batch]]
        rows, mask = data.padded(ids, pad, side="left", device=device)
        settings = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad, "do_sample": False}
        out = model.generate(input_ids=rows, attention_mask=mask, max_new_tokens=new_tokens, **settings)
        for row in out[:, rows.shape[1] :].tolist():
            ended = tokenizer.eos_token_id in row
            text = tokenizer.decode(row[: row.index(tokenizer.eos_token_id)] if ended else row)
            found.append(text.strip() if ended else f"{text} ...")
    model.train(was_training)
    return found


def exact_match(model: nn.Module, tokenizer, examples: Sequence[Mapping[str, str]], new_tokens: int = 8) -> float:
    """Share of examples whose whole response is the output, and ends there."""
    examples = data.several(examples, Mapping)
    if not examples:
        raise BadInput("There is no example to answer: give one or more.")
    said = answers(model, tokenizer, examples, new_tokens)
    return sum(text == str(example["output"]).strip() for text, example in zip(said, examples, strict=True)) / len(said)


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def counts(model: nn.Module) -> tuple[int, int]:
    """How many parameters of a model are frozen, and how many train."""
    trained = sum(p.numel() for p in trainable(model).values())
    return sum(p.numel() for p in model.parameters()) - trained, trained


def module_of(parameter: str) -> str:
    """The module beside which an adapter stands, from the name of one of its parameters: "in_proj"."""
    return parameter.split(".lora_")[0].split(".")[-1]


@contextmanager
def freed_at_once():
    """Inside, glibc gives large freed tensors back at once, so that resident memory is what is in use, not what was."""
    threshold = getattr(ctypes.CDLL(None), "mallopt", lambda *arguments: None)
    threshold(-3, 2**16)  # M_MMAP_THRESHOLD: larger blocks get pages of their own
    try:
        yield
    finally:
        threshold(-3, 2**25)  # the most that it chooses by itself


def quietly(work):
    """What `work()` returns, without its warnings; those of later calls are shown as before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


# ---- training -------------------------------------------------------------------------------------------------------


def arguments(
    folder: Path, steps: int, batch: int, lr: float, save_steps: int = 0, eval_batch: int = 10, **changes
) -> TrainingArguments:
    """Trainer's settings: `batch` examples a step in all processes together, AdamW, a short warm-up, then a decay.

    eval_batch: held-out examples that a process takes at a time. With all processes' it divides them, or some would
    be scored twice.
    save_steps: write a checkpoint to `folder` every so many steps; 0 writes none.
    Raises: BadInput where the processes cannot share the batch evenly.
    """
    settings = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=eval_batch,
        learning_rate=lr,
        warmup_steps=max(1, steps // 20),
        logging_steps=max(1, steps // 20),
        eval_strategy="steps",
        eval_steps=max(10, steps // 10),
        save_strategy="steps" if save_steps else "no",
        save_steps=save_steps or 500,
        save_on_each_node=os.environ.get("LOCAL_WORLD_SIZE") != os.environ.get("WORLD_SIZE"),
        report_to="none",
        use_cpu=pool.pick_device().type == "cpu",
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,
        **changes,
    )
    processes = settings.world_size
    if batch % processes:
        raise BadInput(f"A batch of {batch} cannot be shared evenly by {processes} processes: choose a multiple.")
    settings.per_device_train_batch_size = batch // processes
    return settings


class StopAfter(TrainerCallback):
    """Ends the training after a step, as somebody who presses "stop" does: whatever comes later has not happened."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def learned(model: nn.Module) -> list:
    """What trains of a model, for `checkpoints`: its adapters' configs, and its parameters without their values."""
    parameters = [(name, [*p.shape], str(p.dtype)) for name, p in trainable(model).items()]
    return [getattr(model, "peft_config", None), parameters]


held: dict[Path, TextIO] = {}  # the folders of this process's trainings, with their locks


def checkpoints(name: str, settings: object) -> Path:
    """The folder for checkpoints of one training: what the same one left, with as many processes, is still in it.

    While another process of this machine trains there, a folder beside it. Several processes of one training share it
    (`notebooks.launch` starts one training at a time).

    settings: all that the training is made of, its rows and what trains (`learned`) too: with others it is another one.
    """
    made_of = [settings, os.environ.get("WORLD_SIZE", "1")]
    key = hashlib.sha256(json.dumps(results.plain(made_of), sort_keys=True).encode()).hexdigest()[:8]
    if "WORLD_SIZE" in os.environ:
        return files.BUILD / "finetune" / f"{name}-{key}"
    numbered = itertools.chain([f"{name}-{key}"], (f"{name}-{key}-{number}" for number in itertools.count(2)))
    return next(files.BUILD / "finetune" / folder for folder in numbered if _holds(files.BUILD / "finetune" / folder))


def _holds(folder: Path) -> bool:
    """Whether this process has a training's folder to itself, from now on if it is free."""
    if folder not in held and (lock := files.lock(folder.parent / ".locks" / folder.name)):
        held[folder] = lock
    return folder in held


def last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint in the folder that all processes have, each on its own machine's disk.

    That a training goes on from one is printed.
    """
    whole = {path.name for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal() and _is_whole(path)}
    if torch.distributed.is_initialized():
        everywhere: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everywhere, whole)
        whole = set.intersection(*everywhere)
    if not whole:
        return None
    step = max(int(name.split("-")[1]) for name in whole)
    if os.environ.get("RANK", "0") == "0":
        print(f"The same training was stopped: it goes on after step {step}.", flush=True)
    return str(folder / f"checkpoint-{step}")


def _is_whole(checkpoint: Path) -> bool:
    """Whether each file of a checkpoint reaches its end: the state, which is written last, the weights, torch's own."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        for path in checkpoint.glob("*.safetensors"):
            with safe_open(path, "pt"):
                pass
    except (OSError, ValueError, SafetensorError):
        return False
    saved = (path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    return all(map(zipfile.is_zipfile, saved))


@contextmanager
def saving(folder: Path):
    """Inside the with, a checkpoint that a full disk cuts off is one sentence.

    What it left is deleted, and the checkpoints before it stay.
    Raises: DiskFull with the step after which the training will go on.
    """
    try:
        yield
    except Exception as problem:  # the system's, safetensors' and torch's, which share no base
        if not _is_full(problem):
            raise
        for path in folder.glob("checkpoint-*"):
            if not _is_whole(path):
                shutil.rmtree(path, ignore_errors=True)
        steps = [int(path.name[11:]) for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
        later = f"goes on after step {max(steps)}, which is kept" if steps else "begins anew"
        raise DiskFull(
            f"A checkpoint of this training could not be written to {folder}, where {human(files.free(folder))} are "
            f"free: make room there, then run this again, and the training {later}."
        ) from problem


def _is_full(problem: BaseException | None) -> bool:
    """Whether a full disk is behind an error: torch's writer and safetensors say it in words of their own."""
    while problem is not None:
        words = [*map(os.strerror, files.FULL), "PytorchStreamWriter", "inline_container"]
        if getattr(problem, "errno", None) in files.FULL or any(word in str(problem) for word in words):
            return True
        problem = problem.__cause__ or problem.__context__
    return False


def finish(trainer: Trainer) -> None:
    """Delete the checkpoints of a training that has ended: the next one begins anew."""
    if trainer.is_local_process_zero():
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
    if lock := held.pop(Path(trainer.args.output_dir), None):
        lock.close()


def save(trainer: Trainer, made: Mapping[str, object], scale: str) -> Path:
    """Write the adapters of a training, what came of it and its losses to build/, once however many processes train.

    made: what came of it, a column each. Returns: the folder of the adapters.
    """
    processes = trainer.args.world_size
    folder = files.BUILD / "finetune" / f"adapter-{scale}-{processes}"
    if trainer.is_world_process_zero():
        name = f"finetune-{scale}" + (f"-{processes}-processes" if processes > 1 else "")
        losses = {what: pd.Series(dict(points)) for what, points in curves(trainer).items()}
        trainer.model.save_pretrained(folder)
        results.save(pd.DataFrame([{**made, "processes": processes}]), name)
        results.save(pd.DataFrame(losses).rename_axis("step").reset_index(), f"{name}-losses")
    return folder


def curves(trainer: Trainer) -> dict[str, list[tuple[int, float]]]:
    """{"train", "heldout": (step, loss) pairs} of a training, also of the part before an interrupt."""
    rows = trainer.state.log_history
    return {
        what: [(row["step"], row[key]) for row in rows if key in row]
        for what, key in (("train", "loss"), ("heldout", "eval_loss"))
    }
