"""Rebuild what data/tiny ships: text, tokenizer, the six checkpoints and report.json (`make tiny`).

    python scripts/tiny/build.py                     everything, two models at a time
    python scripts/tiny/build.py --only mamba olmoe  these models, on the text and tokenizer that are there
    python scripts/tiny/build.py --steps 60 --out D  a short version somewhere else

A model is trained, saved and measured in a folder of its own and moved into place at the end, so a run that is stopped
leaves whole checkpoints only, and a second run starts cleanly.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from shared import files
from shared.notebooks import commands

TINY = files.DATA / "tiny"
SLOWEST_FIRST = ("mamba", "jamba", "olmoe-collapsed", "transformer", "deepseek-moe", "olmoe")
# One thread each: on small machines two threads per process are slower than one. And glibc keeps what is freed: giving
# a training step's large buffers back to the system and faulting them in again costs a quarter of the time.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**36)}


def replace(new: Path, old: Path) -> None:
    """Move the folder `new` to where `old` is."""
    shutil.rmtree(old, ignore_errors=True)
    new.rename(old)


def scratch(out: Path, name: str) -> Path:
    """Return an empty folder beside what it will become; leftovers of a run that was stopped go."""
    folder = out / f".building-{name}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_text(out: Path) -> None:
    import grammar

    grammar.write(out / "text")


def write_tokenizer(out: Path) -> None:
    import train

    folder = scratch(out, "tokenizer")
    train.train_tokenizer([text for _, text in train.documents("train", out / "text")], folder)
    replace(folder, out / "tokenizer")


def train_one(name: str, out: Path, steps: int, slot: int) -> None:
    """Train, save and measure one model; leave its part of the report beside its weights for the caller to collect."""
    import claims
    import train

    tokenizer = train.load_tokenizer(out / "tokenizer")
    texts = train.documents("train", out / "text")
    ids = tokenizer([text for _, text in texts])["input_ids"]
    folder = scratch(out, name)
    trained = train.fit(train.RECIPES[name], ids, steps, bar={"desc": f"{name:16}", "position": slot, "leave": True})
    train.save(trained, folder)
    entry = {
        "parameters": train.parameters(trained.model),
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "steps": steps,
        "learning_rate": train.RECIPES[name].learning_rate,
        "balance": train.RECIPES[name].balance,
        "seconds": trained.seconds,
        "loss_curve_nats_per_token": trained.curve[:: max(1, len(trained.curve) // 80)],
        **claims.measure(folder, tokenizer, train.documents("heldout", out / "text"), claims.DomainClassifier(texts)),
    }
    files.write(out / f".building-{name}.json", json.dumps(entry))
    replace(folder, out / name)


def report(out: Path, entries: dict) -> None:
    """Write report.json: what was measured on this run; models that it left alone keep their entries."""
    import claims
    import torch
    import train
    import transformers

    tokenizer = train.load_tokenizer(out / "tokenizer")
    texts = {split: train.documents(split, out / "text") for split in ("train", "heldout")}
    ids = {split: tokenizer([text for _, text in found])["input_ids"] for split, found in texts.items()}
    trigram = claims.Trigram(ids["train"]).document_nll(ids["heldout"])
    path = out / "report.json"
    before = json.loads(path.read_text())["models"] if path.exists() else {}
    models = before | entries
    content = {
        "date": date.today().isoformat(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "machine": f"{platform.machine()}, one thread per model",
        "training": {"window": train.WINDOW, "batch": train.BATCH, "seed": train.SEED},
        "text": {
            split: {
                "documents": len(found),
                "bytes": sum(len(text.encode()) for _, text in found),
                "tokens": sum(len(document) + 1 for document in ids[split]),
            }
            for split, found in texts.items()
        },
        "trigram_bits_per_byte": claims.rounded(claims.bits_per_byte(trigram, texts["heldout"])),
        "models": {name: models[name] for name in train.RECIPES if name in models},
    }
    files.write(path, json.dumps(content, indent=1) + "\n")


def table(out: Path) -> str:
    content = json.loads((out / "report.json").read_text())
    baseline = content["trigram_bits_per_byte"]["overall"]
    lines = [f"{'model':16} {'parameters':>10} {'seconds':>8} {'bits/byte':>10} {'against trigram':>16}"]
    for name, entry in content["models"].items():
        bits = entry["bits_per_byte"]["overall"]
        row = f"{name:16} {entry['parameters']:10,} {entry['seconds']:8.0f} {bits:10.3f} {bits / baseline - 1:16.1%}"
        lines.append(row)
    return "\n".join([*lines, f"{'trigram':16} {'':10} {'':8} {baseline:10.3f}"])


@commands.program("Interrupted: the models that are finished are in place.")
def main(arguments: list[str] | None = None) -> None:
    parser = commands.Parser(__doc__)
    model, steps = commands.one_of("--only", SLOWEST_FIRST), commands.whole("--steps")
    parser.add_argument("--only", type=model, nargs="+", metavar="MODEL", help="train these models only")
    parser.add_argument("--steps", type=steps, help="optimisation steps (default: those of the shipped models)")
    parser.add_argument("--out", type=Path, default=TINY, help="where the results go (default: data/tiny)")
    parser.add_argument("--slot", type=int, help="of the progress bar, in a process that trains one model")
    arguments = parser.parse_args(arguments)
    out, only = arguments.out.resolve(), arguments.only
    if arguments.slot is not None:
        train_one(only[0], out, arguments.steps, arguments.slot)
        return

    held = commands.alone("make tiny", files.BUILD / "tiny" if out == TINY else out)  # noqa: F841  until the program ends
    import train

    steps = arguments.steps or train.STEPS
    for name, write in (("text", write_text), ("tokenizer", write_tokenizer)):
        if not only or not (out / name).exists():
            write(out)
    names = only or list(SLOWEST_FIRST)

    def run(job: tuple[int, str]) -> tuple[str, dict]:
        slot, name = job
        command = [
            sys.executable,
            __file__,
            "--only",
            name,
            "--steps",
            str(steps),
            "--out",
            str(out),
            "--slot",
            str(slot),
        ]
        subprocess.run(command, check=True, env=os.environ | ENVIRONMENT)
        part = out / f".building-{name}.json"
        entry = json.loads(part.read_text())
        part.unlink()
        return name, entry

    with ThreadPoolExecutor(max_workers=2) as pool:
        entries = dict(pool.map(run, enumerate(names)))
    report(out, entries)
    print("\n" * len(names) + table(out))


if __name__ == "__main__":
    sys.exit(main())
