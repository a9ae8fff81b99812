"""The card of a model: what the course knows of it by its name, before anything is loaded or fetched.

Names are those of the published configs in data/models/ ("mamba-2.8b") and of the tiny models that ship with the course
("tiny/mamba"). Who gets a name looks it up here, once, and hands the card on.
"""

import difflib
import json
import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from shared import files
from shared.errors import BadInput, DamagedCheckpoint
from shared.hub.catalogue import CONFIGS, MODELS, Config, Source

# Where the published configs are read; a rehearsal of scale full puts those of its small stand-ins in their place.
PUBLISHED = Path(os.environ.get("COURSE_MODELS") or files.DATA / "models")

TINY = tuple(f"tiny/{m}" for m in ("mamba", "transformer", "olmoe", "olmoe-collapsed", "deepseek-moe", "jamba"))

# With the twins mamba-2.8b and pythia-2.8b five architectures of one size: always with random weights. At scale tiny
# the same classes with few and narrow layers, under names that say so.
SIBLINGS = ("mamba2-2.7b", "mamba2attn-2.7b", "transformerpp-2.7b")
_NARROW = {"hidden_size": 64, "vocab_size": 1024, "num_hidden_layers": 4}
_IN_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16}
NARROW = {
    "tiny/mamba2-2.7b": _NARROW | {"num_heads": 8, "head_dim": 16, "state_size": 32},
    "tiny/mamba2attn-2.7b": _NARROW
    | _IN_HEADS
    | {"mamba_num_heads": 8, "mamba_head_dim": 16, "ssm_state_size": 32}
    | {"layers_block_type": ["mamba", "attention", "mamba", "mamba"]},
    "tiny/transformerpp-2.7b": _NARROW | _IN_HEADS | {"intermediate_size": 176},
}


@dataclass(frozen=True)
class Card:
    """One model of the course.

    file: its config.json, for a narrow shape that of the published one. source: the repository that has its weights, or
    the published model of which the course has the config alone; None for a tiny one, which ships. folder: where a tiny
    model's weights lie, else None.
    """

    name: str
    file: Path
    source: Source | Config | None = field(default=None, compare=False)
    folder: Path | None = None

    @cached_property
    def config(self):
        """The transformers config: as published for a full model, as saved for a tiny one, of a narrow shape as
        published with the fields of `NARROW`. Read once, no network.

        Raises: DamagedCheckpoint where the file is missing, not JSON, or describes no model that is known here.
        """
        from transformers import AutoConfig

        from shared.models import deepseek

        deepseek.register()
        try:
            fields = dict(json.loads(self.file.read_text()))
        except (OSError, TypeError, ValueError):
            raise DamagedCheckpoint(f"{self.file} is missing or not JSON: {remedy(self.file)}.") from None
        fields.pop("auto_map", None)  # points to code on the hub, which the course never runs
        fields |= NARROW.get(self.name, {})
        try:
            return AutoConfig.for_model(**fields)
        except Exception as error:  # each config class validates its fields in its own way
            raise DamagedCheckpoint(
                f"{self.file} describes no model that is known here ({first_sentence(error)}): {remedy(self.file)}."
            ) from error


def card(name: str) -> Card:
    """The card of a model. Raises: BadInput with the known names and the closest one."""
    check_name(name)
    if name in TINY:
        folder = files.DATA / name
        return Card(name, folder / "config.json", folder=folder)
    published = name.removeprefix("tiny/")  # of a narrow shape
    source = CONFIGS[published] if published in CONFIGS else MODELS[published]
    return Card(name, PUBLISHED / f"{published}.json", source)


def check_name(name: str) -> str:
    """Return `name` if the course has such a model; else raise BadInput with the known names and the closest one."""
    known = [*MODELS, *CONFIGS, *TINY, *NARROW]
    if name in known:
        return name
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f"the closest is {close[0]!r}, and " if close else ""
    raise BadInput(f"There is no model {name!r}: {hint}the course has {', '.join(known)}.")


def published_config(name: str):
    """The transformers config of a model, one of the caller's own. Raises as `card` and `Card.config` do."""
    return card(name).config


def read_config(file: Path):
    """The config of a causal language model in a config.json, of any type that transformers knows.

    Nothing is downloaded, and no code runs that the file names. Of a model with images the text model is taken.

    Raises: BadInput, one sentence, for what is no such file.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, __version__

    from shared.models import deepseek

    deepseek.register()
    try:
        file = file / "config.json" if file.is_dir() else file
        fields = json.loads(file.read_text())
    except OSError as error:
        raise BadInput(f"{file} cannot be read ({error.strerror}): name a config.json.") from None
    except (ValueError, RecursionError):
        raise BadInput(f"{file} is not JSON: name the config.json of a model.") from None
    kind = fields.get("model_type") if isinstance(fields, dict) else None
    if not isinstance(kind, str):
        raise BadInput(
            f"{file} has no model_type, which says what kind of model it is: name the config.json of a model."
        )
    if kind not in CONFIG_MAPPING:
        code = ", and names code of its own (auto_map), which is never run" if "auto_map" in fields else ""
        raise BadInput(f"{file} is of type {kind!r}, which transformers {__version__} does not know{code}.")
    try:
        config = AutoConfig.for_model(**_shape_alone(fields))
        text = config if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else config.get_text_config(decoder=True)
        layers = getattr(text.get_text_config(decoder=True), "num_hidden_layers", 1)
    except Exception as error:  # each config class validates its fields in its own way
        raise BadInput(f"{file} describes no model of type {kind!r} ({first_sentence(error)}).") from error
    if type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BadInput(f"{file} is of type {kind!r}, which is no causal language model: its cache has no size here.")
    if not isinstance(layers, int) or not 1 <= layers <= DEEPEST:
        raise BadInput(f"{file} asks for {layers} layers, and from 1 to {DEEPEST:,} are built here.")
    return text


def _shape_alone(fields):
    """The fields of a config, and of those inside it, without what names code: classes, kernels on the hub, formats."""
    if not isinstance(fields, dict):
        return fields
    kept = {key: value for key, value in fields.items() if key not in ("auto_map", "quantization_config")}
    return {key: _shape_alone(value) for key, value in kept.items() if not key.endswith("_implementation")}


DEEPEST = 1000  # layers; building them takes time even where they take no memory


def first_sentence(error: Exception) -> str:
    """What an error of another package says, short enough to stand inside a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # huggingface_hub names the validator in its first line, and what is wrong in the second.
    said = lines[1] if lines[0].startswith("Class validation") and len(lines) > 1 else lines[0]
    return said.split(". ")[0][:160].rstrip(".:")


def remedy(file: Path) -> str:
    """What to do about a damaged file or folder of the course, as the end of a sentence."""
    if not file.is_relative_to(files.DATA):
        return f"take {file} out of the folder that COURSE_MODELS names, or make it anew"
    rebuild = " and `make tiny` builds it anew" if file.is_relative_to(files.DATA / "tiny") else ""
    return f"`git checkout -- {file.relative_to(files.DATA.parent)}` restores it{rebuild}"
