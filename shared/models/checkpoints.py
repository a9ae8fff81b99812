"""Whether the weights of a model are whole: every file is there and none was cut short."""

import json
from pathlib import Path

from shared import files
from shared.errors import DamagedCheckpoint
from shared.hub import fetch, store
from shared.hub.catalogue import Source
from shared.models import cards, sizes
from shared.models.cards import Card


def folder(card: Card) -> Path:
    """The folder with all files of a model, downloaded first where need be.

    Raises:
        Missing: what is missing, how large it is and how to get it. DiskFull: there is no room for it.
    """
    return card.folder or fetch.fetch(card.name, size=lambda: sizes.published_bytes(card))


def cached(card: Card) -> Path | None:
    """The folder with (some of) a model's files on this machine, without asking the network, or None."""
    found = store.snapshot(card.source) if isinstance(card.source, Source) else card.folder
    return found if found and found.exists() else None


def check_files(folder: Path) -> None:
    """Raise DamagedCheckpoint for the first file of a checkpoint that is missing or cut short. Reads headers only."""
    from safetensors import SafetensorError, safe_open

    for file in store.checkpoint_files(folder):
        if not file.exists():
            raise DamagedCheckpoint(f"{file} is missing: {remedy(folder)}.")
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise DamagedCheckpoint(f"{file} is damaged ({error}): {remedy(folder)}.") from None


def check_config(folder: Path) -> None:
    """Raise DamagedCheckpoint for a config.json of no model that is known here, also where it names code of its own.

    Such code (`auto_map`) is never run. A model that transformers or the course has is loaded as that, without it.
    """
    from transformers import AutoConfig

    from shared.models import deepseek

    deepseek.register()
    file = folder / "config.json"
    try:
        fields = dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{file} is missing or not JSON: {remedy(folder)}.") from None
    if (other := fields.get("transformers_weights")) is not None:
        raise DamagedCheckpoint(f"{file} names other weights than model.safetensors ({other}): {remedy(folder)}.")
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each config class validates its fields in its own way
        code = " and names code of its own (auto_map), which is never run" if "auto_map" in fields else ""
        raise DamagedCheckpoint(f"{file} describes no model that is known here{code}: {remedy(folder)}.") from error


def missing_tokenizer(folder: Path) -> Path | None:
    """The first file of a tokenizer that is not in the folder, or None."""
    return next((file for file in store.tokenizer_files(folder) if not file.exists()), None)


def remedy(folder: Path) -> str:
    """What to do about a damaged checkpoint, as the end of a sentence."""
    if folder.is_relative_to(files.DATA):
        return cards.remedy(folder)
    return f"delete {folder.parents[1]} and load again, which downloads it anew"
