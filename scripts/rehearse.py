"""Rehearse scale full without its checkpoints (`make rehearse`): fetch stand-ins from a hub on this machine, cut the
network, run solved labs at SCALE = "full".

    python scripts/rehearse.py --lab 2.4.5                 trained stand-ins
    python scripts/rehearse.py --lab 2.4.5 --weights random

Each run begins with empty caches, into which `make fetch LAB=... SCALE=full` puts what the catalogue lists for that lab
and nothing else. Numbers of the settings are smaller (NUMBERS), nothing else is changed. A run is good when every cell
ran, every check passed, every figure shows something, and nothing but progress bars went to stderr.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

from shared import files, notebooks
from shared.errors import BadInput, CourseError
from shared.notebooks import commands, notice

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port
# Smaller numbers for the settings of scale full, by lab.
NUMBERS = {
    "2.4.1": {
        "contexts": (64, 128, 256, 512),
        "timing": {"new_tokens": 5, "repeats": 2, "warmup": 1},
        "recall_steps": 12,
    },
    "2.4.2": {"lengths": (64, 128, 256), "copying_steps": 22, "induction_steps": 4},
    "2.4.3": {"prompts": 16, "permutations": 49, "subsets": 2},
    "2.4.4": {"windows": 2, "steps": 4},
    "2.4.5": {
        "strides": (64, 48, 32, 16),
        "passage": 1500,
        "window": 256,
        "story": 8_000,
        "documents": 6,
        "contexts": (64, 128, 256),
        "batches": (1, 2),
        "timing": {"new_tokens": 5, "repeats": 2, "warmup": 1},
    },
    "2.4.6": {
        "steps": 4,
        "batch": 2,
        "new_tokens": 2,
        "examples": 40,
        "windows": 10,
        "short_steps": 4,
    },
}


@dataclass(frozen=True)
class Rehearsal:
    """One run: a lab, values of its parameters, and the models that a value names beyond the lab's own."""

    lab: str
    parameters: tuple[tuple[str, str], ...] = ()
    fetched: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.lab, *(value for _, value in self.parameters)])


def rehearsals() -> list[Rehearsal]:
    """Every lab with trained stand-ins and with random weights, and the labs that take another mixture with that."""
    labs = list(notebooks.labs())
    trained = [Rehearsal(lab) for lab in labs]
    random = [Rehearsal(lab, (("WEIGHTS", "random"),)) for lab in labs]
    other = "deepseek-moe-16b"
    mixtures = [Rehearsal(lab, (("MODEL", other),), (other,)) for lab in ("2.4.3", "2.4.4")]
    return trained + mixtures + random


# ---- the hub and what is fetched from it ------------------------------------------------------------------------


def repositories(folder: Path) -> dict:
    """Every repository of the catalogue as a stand-in: (kind, repository) -> (pinned revision, {path: content})."""
    from rehearsal import models, texts

    from shared.hub.catalogue import MODELS

    made = texts.repositories()
    for name, source in MODELS.items():
        made["model", source.repo] = (source.revision, models.files(name, folder / name))
    return made


@contextlib.contextmanager
def hub(folder: Path) -> Iterator[str]:
    """The address of a hub that serves every stand-in, while the with lasts."""
    from rehearsal.hub import LocalHub

    server = LocalHub()
    server.repos.update(repositories(folder))
    try:
        yield server.address
    finally:
        server.shutdown()
        server.server_close()


def environment(folder: Path, endpoint: str, home: Path) -> dict[str, str]:
    """The variables of a process that takes part: the stand-ins' configs, a hub's address, caches of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), CLOSED)
    ours = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "COURSE_MODELS": str(folder / "configs"),
        "COURSE_BUILD": str(home / "build"),
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": kept.get("OMP_NUM_THREADS", "1"),
    }
    return kept | proxies | ours


def fetch(run: Rehearsal, env: dict[str, str]) -> None:
    """`make fetch` of the run's lab, and of models that its parameters name. Raises CourseError with its output."""
    wanted = [("LAB=" + run.lab, "SCALE=full"), *(("NAME=" + name,) for name in run.fetched)]
    for arguments in wanted:
        command = ["make", "--no-print-directory", "fetch", *arguments]
        done = subprocess.run(command, cwd=files.ROOT, env=env, capture_output=True, text=True)
        if done.returncode:
            raise CourseError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


# ---- a run and its verdict --------------------------------------------------------------------------------------


def kernels(folder: Path):
    """A process for `rehearse`, while the with lasts: what labs import is there from the start, and no network."""
    from rehearsal import warm

    return warm.process(environment(folder, CLOSED, folder / "home"))


def faults(notebook) -> list[str]:
    """What an executed notebook has that it should not have, in a sentence each."""
    from shared import plots

    found = []
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                found.append(f"{cell.id}: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr" and (rest := without_bars(output.text)):
                found.append(f"{cell.id}: on stderr: {rest}")
            drawn = output.get("data", {}).get(plots.DRAWN)
            if drawn is not None:
                found += [f"{cell.id}: {fault}" for fault in plots.faults(drawn)]
            elif output.get("data", {}).get("image/png"):
                found.append(f"{cell.id}: an image that plots.show has not shown")
        if "check" in cell.metadata.get("tags", []) and not notice.passed(notebooks.text(cell)):
            found.append(f"{cell.id}: {notebooks.text(cell)}")
    return found


def without_bars(text: str) -> str:
    """What is on stderr besides progress bars: each is redrawn after a carriage return and says how much is done."""
    parts = re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d;]*[A-Za-z]", "", text))
    return "\n".join(part for part in parts if part.strip() and not re.search(r"\d+%\||\d+it \[|\d+/\d+ \[", part))


def rehearse(
    run: Rehearsal, folder: Path, endpoint: str, worker: Executor, execute: Callable | None = None
) -> tuple[notebooks.Run, list[str]]:
    """Fetch for a run from the hub, execute it without a network; (what came, what was wrong with it).

    worker: one of `kernels`. execute: in the place of `warm.execute`.
    """
    import nbformat
    from rehearsal import warm

    home = folder / "home"
    shutil.rmtree(home, ignore_errors=True)
    random = ("WEIGHTS", "random") in run.parameters
    if not random:  # nothing to download is the point of random weights
        fetch(run, environment(folder, endpoint, home))
    given = run.lab, folder / "executed" / run.name, NUMBERS[run.lab], dict(run.parameters)
    done = worker.submit(execute or warm.execute, *given).result()
    wrong = faults(nbformat.read(done.notebook, as_version=4))
    return done, wrong or [done.error] * bool(done.error)


@commands.program("Interrupted: the labs that were rehearsed are in build/rehearsal.")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(__doc__)
    parser.add_argument("--lab", default="", help="one lab, such as 2.4.5 (default: all)")
    weights = commands.one_of("WEIGHTS", ("", "trained", "random"))
    parser.add_argument("--weights", default="", type=weights, help="trained or random (default: both)")
    options = parser.parse_args(arguments)
    chosen = [run for run in rehearsals() if options.lab in ("", run.lab)]
    if options.weights:
        random = options.weights == "random"
        chosen = [run for run in chosen if (("WEIGHTS", "random") in run.parameters) == random]
    if not chosen:
        raise BadInput(f"There is no lab {options.lab!r}; the labs are {', '.join(notebooks.labs())}.")
    from rehearsal import models

    folder, bad = files.BUILD / "rehearsal", 0
    held = commands.alone("make rehearse", folder)  # noqa: F841  until the program ends
    models.write_configs(folder / "configs")
    with hub(folder / "made") as endpoint, kernels(folder) as worker:
        for run in chosen:
            done, wrong = rehearse(run, folder, endpoint, worker)
            verdict = "good" if not wrong else f"{len(wrong)} faults"
            print(f"{run.name:<28} {done.seconds:6.1f} s  {done.passed} of {done.checks} checks  {verdict}", flush=True)
            print("".join(f"    {fault}\n" for fault in wrong), end="", flush=True)
            bad += bool(wrong)
    print(f"The executed labs are in {os.path.relpath(folder / 'executed')}.")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
