"""Where trained weights lie (with the course, in the Hugging Face cache, on the hub) and whether they are whole."""

import json
import urllib.error
import urllib.request
from pathlib import Path

from shared import sizes
from shared.errors import DamagedCheckpoint, ModelMissing
from shared.memory import human
from shared.sizes import DATA, MODELS, TINY, published_config, size

# What is fetched of a repository: some also hold the same weights in other formats.
PATTERNS = ("*.json", "*.safetensors", "tokenizer*", "*.txt")


def cached(name: str) -> Path | None:
    """The folder with (some of) a model's files on this machine, without asking the network, or None."""
    from huggingface_hub import try_to_load_from_cache

    if name in TINY:
        return DATA / name
    config = try_to_load_from_cache(MODELS[name], "config.json")
    return Path(config).parent if isinstance(config, str) else None


def folder(name: str) -> Path:
    """The folder with all files of a model, downloaded first where need be.

    Raises:
        ModelMissing: what is missing, how large it is and how to get it.
    """
    found = cached(name)
    if name in TINY or (found and all(file.exists() for file in _files(found))):
        return found
    from huggingface_hub import snapshot_download

    repo, dtype = MODELS[name], published_config(name).dtype
    why = _unreachable()
    if not why:
        try:
            return Path(snapshot_download(repo, allow_patterns=PATTERNS))
        except Exception as error:  # gated, moved, disk full, cut off: the errors of the hub's client share no base
            why = str(error).strip().splitlines()[0].rstrip(".")
    raise ModelMissing(
        f"The weights of {name} are not complete on this machine and cannot be fetched now ({why}): where there is a "
        f"network, `hf download {repo}` fetches {human(size(name, dtype).weight_bytes)} into the cache, and "
        'WEIGHTS = "random" needs no download.'
    )


def _unreachable() -> str:
    """Why the hub cannot be asked, or nothing. One short question: its own client retries for most of a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=5).close()
    except urllib.error.HTTPError:
        return ""  # an answer, though not a friendly one
    except OSError as error:
        return f"{constants.ENDPOINT} does not answer: {getattr(error, 'reason', error)}"
    return ""


def _files(folder: Path) -> list[Path]:
    """The files a checkpoint must have: its config, its index if it is in several parts, its weights."""
    config, index = folder / "config.json", folder / "model.safetensors.index.json"
    if not index.exists():
        return [config, folder / "model.safetensors"]
    try:
        parts = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError):
        raise DamagedCheckpoint(f"{index} is damaged: {remedy(folder)}.") from None
    return [config, index, *(folder / part for part in sorted(parts))]


def check_files(folder: Path) -> None:
    """Raise DamagedCheckpoint for the first file of a checkpoint that is missing or cut short. Reads headers only."""
    from safetensors import SafetensorError, safe_open

    for file in _files(folder):
        if not file.exists():
            raise DamagedCheckpoint(f"{file} is missing: {remedy(folder)}.")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise DamagedCheckpoint(f"{file} is damaged ({error}): {remedy(folder)}.") from None


def remedy(folder: Path) -> str:
    """What to do about a damaged checkpoint, as the end of a sentence."""
    if folder.is_relative_to(DATA):
        return sizes.remedy(folder)
    return f"delete {folder.parents[1]} and load again, which downloads it anew"
