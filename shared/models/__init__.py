"""The models of the course: how large they are, whether they fit, getting them into memory, running them.

`cards` says what a name means, `sizes` counts from a config, `fitting` compares with what is free, `loading` gets
weights, `running` calls a model.
"""

from shared.errors import (
    BadInput,
    ContextTooLong,
    CourseError,
    DamagedCheckpoint,
    DiskFull,
    Missing,
    NotEnoughMemory,
)
from shared.models.cards import MODELS, TINY, Card, card
from shared.models.fitting import Fit, fits
from shared.models.loading import from_config, from_folder, load, tiny_tokenizer, tokenizer_of, unload
from shared.models.running import check_context, fingerprint, forward, in_eval, path, positions
from shared.models.sizes import ModelSize, size

__all__ = [
    "MODELS",
    "TINY",
    "BadInput",
    "Card",
    "ContextTooLong",
    "CourseError",
    "DamagedCheckpoint",
    "DiskFull",
    "Fit",
    "Missing",
    "ModelSize",
    "NotEnoughMemory",
    "card",
    "check_context",
    "fingerprint",
    "fits",
    "forward",
    "from_config",
    "from_folder",
    "in_eval",
    "load",
    "path",
    "positions",
    "size",
    "tiny_tokenizer",
    "tokenizer_of",
    "unload",
]
