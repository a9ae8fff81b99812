"""What the course keeps on this machine: where downloads and Arrow copies lie, how large they are, and away with them.

Two caches hold a data set: the hub's has the files as downloaded, that of `datasets` the Arrow copy that is read. A
model is in the first alone. Several sources can share a repository, and a repository can hold what others fetched: what
belongs to a source are the files that its patterns name, at its pinned revision.
"""

import fnmatch
import json
import os
import shutil
from pathlib import Path, PurePosixPath

from shared.errors import BadInput, CourseError, DamagedCheckpoint
from shared.hub.catalogue import SOURCES, Source

# ---- where things lie -------------------------------------------------------------------------------------------


def storage(source: Source) -> Path:
    """The folder of a source's repository in the hub's cache, whether it is there or not."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{source.kind}s--{source.repo.replace('/', '--')}"


def locks(source: Source) -> Path:
    """The folder with the locks of a source's repository in the hub's cache."""
    return storage(source).parent / ".locks" / storage(source).name


def snapshot(source: Source) -> Path:
    """The folder in which the pinned files of a source lie, whether they are there or not."""
    return storage(source) / "snapshots" / source.revision


def arrow(source: Source) -> Path:
    """The folder of a data set's Arrow copies: where `datasets` itself puts those of this repository."""
    from huggingface_hub import constants

    # datasets.config reads the same variables; importing it takes a second.
    home = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME) / "datasets"
    return Path(os.path.expanduser(home)) / source.repo.replace("/", "___") / source.config


def mark(source: Source, split: str) -> Path:
    """A file that is there from before the first byte until every file has been compared with its hash."""
    return storage(source) / f".fetching-{source.config}-{split}"


def local(name: str, split: str | None = None) -> Path | None:
    """The folder of a source if all of it is on this machine, else None. No network is asked.

    Raises: DamagedCheckpoint where the list of a model's files cannot be read.
    """
    source = SOURCES[name]
    split, folder = split or next(iter(source.splits)), snapshot(source)
    if mark(source, split).exists():
        return None
    if source.kind == "model":
        files = [*checkpoint_files(folder), *tokenizer_files(folder)]
    else:
        files = [folder / file for file in source.splits[split]]
    return folder if all(file.exists() for file in files) else None


def checkpoint_files(folder: Path) -> list[Path]:
    """The files without which a checkpoint cannot be loaded: config, weights, their index where there are several."""
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if not index.exists():
        return [config, folder / "model.safetensors"]
    try:
        parts = {PurePosixPath(part) for part in json.loads(index.read_text())["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise DamagedCheckpoint(f"{index} is damaged: delete it and load again, which downloads it anew.") from None
    for part in sorted(parts):
        if part.suffix != ".safetensors" or part.is_absolute() or ".." in part.parts:
            raise DamagedCheckpoint(
                f"{index} names {part}, and parts are safetensors in its own folder, since a pickle is never loaded: "
                "delete it and load again, which downloads it anew."
            )
    return [config, index, *(folder / part for part in sorted(parts))]


def tokenizer_files(folder: Path) -> list[Path]:
    """The files without which transformers makes up a tokenizer of its own, and says nothing."""
    return [folder / "tokenizer.json", folder / "tokenizer_config.json"]


# ---- how large, and away with it --------------------------------------------------------------------------------


def cached():
    """What lies here: DataFrame by name with bytes of downloads and of Arrow copies, whether whole, its labs."""
    import pandas as pd

    rows = []
    for name, source in SOURCES.items():
        mine = [path for path in _in_snapshots(source) if _belongs(path, source)]
        # Content that two sources share counts for both: each of them alone would need it.
        sizes = [sum(path.stat().st_size for path in mine if path.exists()), _size(arrow(source))]
        if any(sizes):
            rows.append((name, *sizes, _is_complete(name), ", ".join(source.labs), str(storage(source))))
    columns = ["name", "download_bytes", "arrow_bytes", "complete", "labs", "folder"]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def _is_complete(name: str) -> bool:
    try:
        return local(name) is not None
    except DamagedCheckpoint:
        return False


def clear_cache(name: str, dry_run: bool = True) -> int:
    """Delete one source from both caches, and nothing else; by default only say what would go.

    What other revisions, other data sets of the same repository or other programs have there stays, also where it
    shares content with what goes.

    Returns: the bytes that are freed, or would be.
    Raises: BadInput for a name that the course does not have; CourseError before anything is deleted if a path lay
        outside the source's own folders, as where one of them is a link.
    """
    if name not in SOURCES:
        raise BadInput(f"There is no {name!r} to clear: the course has {', '.join(SOURCES)}.")
    source = SOURCES[name]
    if link := _linked_folder(source):
        raise CourseError(
            f"{link} is a link to {link.resolve()}, where files of others may lie, so nothing was deleted: delete by "
            f"hand what you no longer need of {name}, then the link."
        )
    paths = [path for part in _plan(name) for path in part]
    homes = [home.resolve() for home in (storage(source), locks(source), arrow(source))]
    for path in paths:
        real = path.parent.resolve() / path.name  # a link goes itself, not what it leads to
        if not any(real.is_relative_to(home) for home in homes):
            raise CourseError(f"{path} is not of {name}, so nothing was deleted: delete it by hand if it has to go.")
    freed = sum(_size(path) for path in paths)
    for path in paths:
        print(f"{'would delete' if dry_run else 'deleting'} {path}")
        if not dry_run:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    if not dry_run:
        for folder in sorted(snapshot(source).rglob("*"), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
    return freed


def _linked_folder(source: Source) -> Path | None:
    """The first folder of a source that is a link, or None. The two caches themselves may be links to a larger disk."""
    for home, depth in ((storage(source), 1), (locks(source), 2), (arrow(source), 2)):
        above = [home, *home.parents][:depth]
        for folder in [*reversed(above), *(home.rglob("*") if not any(map(Path.is_symlink, above)) else ())]:
            if folder.is_symlink() and folder.is_dir():
                return folder
    return None


def _plan(name: str) -> tuple[list[Path], list[Path]]:
    """What would be deleted in the hub's cache and among the Arrow copies."""
    source = SOURCES[name]
    copies = [arrow(source)] if source.kind == "dataset" and arrow(source).exists() else []
    folder = storage(source)
    every = _in_snapshots(source)
    mine = [path for path in every if _belongs(path, source)]
    marks = [path for split in source.splits if (path := mark(source, split)).exists()]
    if folder.exists() and len(mine) == len(every) and not _others_at_work(source):
        # Nobody else has anything here: the whole folder goes, with temporary files and the list of the repository.
        return [folder, *([locks(source)] if locks(source).exists() else [])], copies
    kept = {path.resolve() for path in every if path not in mine}
    blobs = {path.resolve() for path in mine if path.is_symlink()} - kept
    own = (folder / "blobs").resolve()  # a link in a snapshot may lead anywhere
    return [*mine, *sorted(blob for blob in blobs if blob.exists() and blob.is_relative_to(own)), *marks], copies


def _in_snapshots(source: Source) -> list[Path]:
    """The files in the snapshots of a source's repository, of whatever revision; mostly links to blobs."""
    return [path for path in (storage(source) / "snapshots").rglob("*") if not path.is_dir() or path.is_symlink()]


def _belongs(path: Path, source: Source) -> bool:
    if not path.is_relative_to(snapshot(source)):
        return False
    inside = path.relative_to(snapshot(source)).as_posix()
    return any(fnmatch.fnmatch(inside, pattern) for pattern in source.patterns)


def _others_at_work(source: Source) -> bool:
    """Whether another data set of the same repository is being fetched."""
    others = {mark(s, split) for s in SOURCES.values() if s.repo == source.repo for split in s.splits}
    own = {mark(source, split) for split in source.splits}
    return any(path.exists() for path in others - own)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())
