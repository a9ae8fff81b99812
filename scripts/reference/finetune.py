"""Make the instructions and the two base models of lab 2.4.6, and the runs that it shows beside its own.

    python scripts/reference/finetune.py        (`make finetune`) writes data/tiny/instruct/ and finetune.json

The base models are trained on the old skills alone, on pairs of words; a fifth of all pairs is held out, the same for
every skill. The runs fine-tune on the new skill with the lab's own answers (labs/solutions). Each is kept in
build/finetune-runs/ as it ends, with its settings, and a second call goes on from there. After a change of code,
`make clean` comes first.

finetune.json holds shares of exact matches on held-out instructions:

    made      {machine, threads, versions, date, command, seconds}
    settings  {steps, batch, evaluations, seeds}
    bases     {base: {parameters, steps, loss, exact: {skill: share}}}
    runs      {run: {parameters, share, rate, seeds: {seed: {steps, new, old, heldout}}}}: exact match on the new skill,
              its mean on the old ones, and the loss in nats per token of held-out responses, before the first step
              and after so many
"""

import itertools
import json
import random
import shutil
import sys
import zlib
from functools import partial

import torch
import torch.nn.functional as F
from parts import compact, keep
from peft import LoraConfig, get_peft_model
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    MambaConfig,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
)
from transformers.utils import logging

from shared import files, notebooks, results
from shared.kits import finetune
from shared.notebooks import commands
from shared.scan import in_transformers

OUT, PARTS = files.DATA / "reference" / "finetune.json", files.BUILD / "finetune-runs"
SEEDS = (0, 1, 2)
STEPS, BATCH, EVALUATIONS = 200, 32, 8
PRETRAINING = {"steps": 500, "lr": 3e-3}

# ---- instructions ---------------------------------------------------------------------------------------------------

NOUNS = """
apple bird boat book bridge candle castle chair cloud coin desert door eagle field fire fish flower forest fox
garden glass gold hill honey horse house island jacket kettle king ladder lake lamp leaf lemon letter lion map
market mirror moon mountain mouse music night ocean owl paper pepper piano pocket queen rabbit rain ring river road
rope salt ship shoe silver snow spoon star stone storm table tiger tower train tree valley wagon water whale wheel
wind window winter wolf yard
"""
WORDS = NOUNS.split()
SKILLS = {
    "copy": (("Repeat the words.", "Copy the input."), lambda a, b: f"{a} {b}"),
    "first": (("Name the first word.", "Write only the first word."), lambda a, b: a),
    "last": (("Name the last word.", "Write only the last word."), lambda a, b: b),
    "swap": (("Swap the words.", "Write the words in reverse order."), lambda a, b: f"{b} {a}"),
}
SHIPPED = {"train": {"swap": 240, "copy": 50, "first": 50, "last": 50}, "heldout": dict.fromkeys(SKILLS, 40)}
SHIPPED["heldout"]["swap"] = 100


def pairs(split: str) -> list[tuple[str, str]]:
    """Pairs of different words, in a fixed order without meaning; a fifth of all is held out."""
    heldout = lambda pair: zlib.crc32(" ".join(pair).encode()) % 5 == 0  # noqa: E731
    found = [pair for pair in itertools.permutations(WORDS, 2) if heldout(pair) == (split == "heldout")]
    random.Random(0).shuffle(found)
    return found


def example(skill: str, pair: tuple[str, str], phrasing: int) -> dict[str, str]:
    phrasings, answer = SKILLS[skill]
    return {
        "skill": skill,
        "instruction": phrasings[phrasing % len(phrasings)],
        "input": " ".join(pair),
        "output": answer(*pair),
    }


def write_instructions() -> None:
    """Every example has its own pair of words."""
    for split, counts in SHIPPED.items():
        found = iter(pairs(split))
        lines = [
            json.dumps(example(skill, next(found), number), separators=(",", ":"))
            for skill, count in counts.items()
            for number in range(count)
        ]
        files.write(finetune.INSTRUCT / f"{split}.jsonl", "\n".join(lines) + "\n")


def write_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, and one for each heading of Alpaca's format: short sequences, so that training is quick."""
    texts = [
        example(skill, pair, n) for skill in SKILLS for n in range(2) for pair in zip(WORDS, WORDS[::-1], strict=True)
    ]
    words = sorted(
        {word for text in texts for word in f"{text['instruction']} {text['input']}".replace(".", "").split()}
    )
    specials = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {word: number for number, word in enumerate([*specials, ".", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    headings = [f"### {heading}:\n" for heading in ("Instruction", "Input", "Response")]
    tokenizer.add_tokens([AddedToken(heading, normalized=False) for heading in headings])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )
    fast.save_pretrained(finetune.INSTRUCT / "tokenizer")
    return fast


# ---- base models ----------------------------------------------------------------------------------------------------


def config(name: str, vocabulary: int):
    """Two layers of either kind, about as large."""
    common = {"vocab_size": vocabulary, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1, "num_hidden_layers": 2}
    if name == "mamba":
        return MambaConfig(**common, hidden_size=64, state_size=8, initializer_range=0.1)
    return GPTNeoXConfig(
        **common,
        hidden_size=48,
        intermediate_size=208,
        num_attention_heads=4,
        initializer_range=48**-0.5,
        tie_word_embeddings=True,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    )


def pretrain(name: str, tokenizer, steps: int, lr: float) -> dict:
    """Train a base on whole texts of the old skills, new examples at every step, and save it in bfloat16."""
    torch.manual_seed(0)
    shape = config(name, len(tokenizer))
    model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=False).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=0.05, cycle_momentum=False)
    draw, train = random.Random(0), pairs("train")
    answers = notebooks.solution("2.4.6")
    for _ in range(steps):
        texts = [example(draw.choice(finetune.OLD), draw.choice(train), draw.randrange(2)) for _ in range(BATCH)]
        batch = answers.collate([answers.encode(text, tokenizer) for text in texts], tokenizer.pad_token_id)
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)  # a base learns the prompts too
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rate.step()
    folder = finetune.INSTRUCT / name
    model.eval().to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it comes readable by its owner only
    return {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "steps": steps,
        "loss": round(loss.item(), 4),
        "exact": exact(*finetune.base(name)),
    }


def exact(model, tokenizer) -> dict[str, float]:
    return {
        skill: round(finetune.exact_match(model, tokenizer, finetune.instructions("heldout", (skill,))), 4)
        for skill in SKILLS
    }


# ---- runs -----------------------------------------------------------------------------------------------------------

# {run: (base, target modules (None: everything trains), rank, learning rate, share of replay, loss on the prompt too)}
BOTH = ("in_proj", "x_proj")
RUNS = {
    "in_proj + x_proj": ("mamba", BOTH, 2, 2e-2, 0, False),
    "in_proj": ("mamba", ("in_proj",), 3, 2e-2, 0, False),
    "x_proj": ("mamba", ("x_proj",), 6, 2e-2, 0, False),
    "full": ("mamba", None, 0, 3e-3, 0, False),
    "transformer": ("transformer", ("query_key_value",), 5, 2e-2, 0, False),
    "rank 1": ("mamba", BOTH, 1, 2e-2, 0, False),
    "rank 8": ("mamba", BOTH, 8, 2e-2, 0, False),
    "prompt learned too": ("mamba", BOTH, 2, 2e-2, 0, True),
    "replay 10 %": ("mamba", BOTH, 2, 2e-2, 0.1, False),
    "replay 50 %": ("mamba", BOTH, 2, 2e-2, 0.5, False),
}


class Watch(TrainerCallback):
    """Measures exact match and loss every so many steps."""

    def __init__(self, measure, every: int):
        self.measure, self.every, self.found = measure, every, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.found.append((state.global_step, *self.measure()))


def run(name: str, seed: int) -> dict:
    base, targets, rank, lr, replay, whole = RUNS[name]
    answers = notebooks.solution("2.4.6")
    model, tokenizer = finetune.base(base)
    torch.manual_seed(seed)
    if targets:
        shape = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
        model = get_peft_model(model, shape)
    new = finetune.instructions("train", finetune.NEW)
    old = finetune.instructions("train", finetune.OLD)
    mixed = new + (old * len(new))[: round(len(new) * replay / (1 - replay))]
    rows = [answers.encode(text, tokenizer) for text in mixed]
    if whole:
        rows = [row | {"labels": row["input_ids"]} for row in rows]
    collate = partial(answers.collate, pad_id=tokenizer.pad_token_id)
    heldout = {skills: finetune.instructions("heldout", skills) for skills in (finetune.NEW, finetune.OLD)}
    asked = collate([answers.encode(text, tokenizer) for text in heldout[finetune.NEW]])

    @torch.no_grad()
    def measure():
        training = model.training
        loss = model.eval()(**asked, use_cache=False).loss.item()
        shares = [finetune.exact_match(model, tokenizer, texts) for texts in heldout.values()]
        model.train(training)
        return *shares, loss

    watch = Watch(measure, STEPS // EVALUATIONS)
    watch.found.append((0, *measure()))
    settings = finetune.arguments(PARTS / "none", STEPS, BATCH, lr, seed=seed, disable_tqdm=True)
    settings.eval_strategy, settings.logging_steps = "no", 10**6
    settings.dataloader_drop_last = True
    trainer = Trainer(model, settings, train_dataset=rows, data_collator=collate, callbacks=[watch])
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    trained = sum(parameter.numel() for parameter in finetune.trainable(model).values())
    total = sum(parameter.numel() for parameter in model.parameters())
    columns = [[round(value, 4) for value in column] for column in zip(*watch.found, strict=True)]
    return {"parameters": trained, "share": round(trained / total, 5), "rate": lr} | dict(
        zip(("steps", "new", "old", "heldout"), columns, strict=True)
    )


def collected(bases: dict, runs: dict) -> dict:
    """finetune.json, from the parts."""
    found = {}
    for (name, seed), part in runs.items():
        result = part["result"]
        entry = found.setdefault(name, {key: result[key] for key in ("parameters", "share", "rate")} | {"seeds": {}})
        entry["seeds"][str(seed)] = {key: result[key] for key in ("steps", "new", "old", "heldout")}
    seconds = sum(part["seconds"] for part in [*bases.values(), *runs.values()])
    return {
        "made": results.machine() | {"command": "make finetune", "seconds": round(seconds)},
        "settings": {"steps": STEPS, "batch": BATCH, "evaluations": EVALUATIONS, "seeds": list(SEEDS)},
        "bases": {name: part["result"] for name, part in bases.items()},
        "runs": found,
    }


@commands.program("Interrupted: the runs that have ended are kept, and the same command goes on.")
def main() -> None:
    held = commands.alone("make finetune", PARTS)  # noqa: F841  until the program ends
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    finetune.INSTRUCT.mkdir(exist_ok=True)
    write_instructions()
    tokenizer = write_tokenizer()
    with in_transformers():
        bases = {
            name: keep(PARTS / f"base-{name}.json", PRETRAINING, partial(pretrain, name, tokenizer, **PRETRAINING))
            for name in finetune.BASES
        }
        runs = {
            (name, seed): keep(PARTS / f"{name}-{seed}.json".replace(" ", "-"), settings, partial(run, name, seed))
            for seed in SEEDS
            for name, way in RUNS.items()
            for settings in ({"way": way, "steps": STEPS, "batch": BATCH, "evaluations": EVALUATIONS},)
        }
    files.write(OUT, compact(collected(bases, runs)) + "\n")
    shutil.rmtree(PARTS / "none", ignore_errors=True)
    shipped = sum(file.stat().st_size for file in finetune.INSTRUCT.rglob("*") if file.is_file())
    print(f"{OUT.name}: {OUT.stat().st_size / 1e3:.0f} kB, {finetune.INSTRUCT}: {shipped:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
