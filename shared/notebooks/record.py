"""What an executed notebook carries of its run: the result, and the commit, machine, versions and sources."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from shared import files
from shared.machine import processor

KEY = "course"  # in the notebook's metadata
PATIENCE = 10  # seconds for what a command says
PACKAGES = ("torch", "transformers", "numpy", "matplotlib")
# Writes pages, and no lab reads it: a change there leaves outputs as they are.
WRITES_PAGES = files.ROOT / "shared" / "notebooks" / "pages.py"


@dataclass(frozen=True)
class Run:
    """What one execution of a lab gave. Seconds of wall clock, peak resident bytes of the kernel, checks, error."""

    lab: str
    notebook: Path
    seconds: float
    peak_bytes: int
    passed: int
    checks: int
    error: str = ""
    scale: str = "tiny"
    # Where it comes from: `made_from`.
    commit: str = ""
    machine: str = ""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    date: str = ""
    sources: str = ""

    @property
    def good(self) -> bool:
        return self.passed == self.checks and not self.error


def made_from(notebook, parameters: dict) -> dict:
    """The last fields of a Run, for a notebook that is about to be executed."""
    return {
        "commit": commit(),
        "machine": _machine(),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "sources": sources(notebook, parameters),
    }


def note(notebook, run: Run) -> None:
    """Write a run into the metadata of its executed notebook."""
    notebook.metadata[KEY] = {name: value for name, value in vars(run).items() if name != "notebook"}


def of(path: Path) -> Run | None:
    """The run that wrote a notebook; None where there is none, or where it says nothing of a run."""
    import nbformat

    try:
        return Run(notebook=path, **nbformat.read(path, as_version=4).metadata[KEY])
    except (OSError, ValueError, KeyError, TypeError):  # no file, no notebook, no run, a run of another version
        return None


def sources(notebook, parameters: dict) -> str:
    """A hash of all that the outputs of a notebook are made from: its cells, `shared`, `data`, versions."""
    cells = [(cell.cell_type, cell.source) for cell in notebook.cells]
    read = files.fingerprint({*(files.ROOT / "shared").rglob("*.py"), *files.DATA.rglob("*")} - {WRITES_PAGES})
    return hashlib.sha256(repr((cells, parameters, versions(), read)).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Of Python and of the packages that a lab's numbers depend on."""
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


def commit() -> str:
    """The commit of the clone, such as "4295a51f07 with changes"; empty where the course is no clone."""
    git = ["git", f"--git-dir={files.ROOT / '.git'}", f"--work-tree={files.ROOT}"]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    except OSError:  # no git
        return ""
    if head.returncode:
        return ""
    return head.stdout.strip() + (" with changes" if changes.stdout else "")


def _machine() -> str:
    """The processor with its cores, and the GPU where there is one."""
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return processor()
    gpus = said.stdout.splitlines() if said.returncode == 0 else []
    return "; ".join([processor(), *gpus])
