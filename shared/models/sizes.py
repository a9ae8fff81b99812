"""How large each model of the course is: parameters, weights, cache. Computed from its config, never typed in.

Names are those of the published configs in data/models/ ("mamba-2.8b") and of the tiny models that ship with the course
("tiny/mamba"). A model is built on the meta device, where tensors have shapes and no bytes, and its shapes are counted.
"""

import difflib
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from shared import files
from shared.errors import BadInput, DamagedCheckpoint
from shared.hub.catalogue import MODELS, SOURCES

# Where the published configs are read; a rehearsal of scale full puts those of its small stand-ins in their place.
PUBLISHED = Path(os.environ.get("COURSE_MODELS") or files.DATA / "models")

TINY = tuple(f"tiny/{m}" for m in ("mamba", "transformer", "olmoe", "olmoe-collapsed", "deepseek-moe", "jamba"))


@dataclass(frozen=True)
class ModelSize:
    """Parameters and bytes of a model at batch 1.

    total: parameters, tied weights counted once. active: those that work for one token, so without the experts that the
    router leaves out. state_bytes: a Mamba layer's recurrent and convolution states, whatever the context.
    largest_bytes: the largest parameter in `dtype`, such as the fused experts of a layer.
    """

    total: int
    active: int
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    largest_bytes: int = field(default=0, compare=False)


def pick_dtype(dtype):
    """The torch dtype that is meant by a torch.dtype or by its name, "bfloat16" or "torch.bfloat16".

    Raises: BadInput for what is no dtype of floating-point weights.
    """
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if found not in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        raise BadInput(f'Weights are in "bfloat16", "float16", "float32" or "float64", not in {dtype!r}.')
    return found


def size(name: str, dtype: torch.dtype | str = torch.bfloat16, bits: int = 16) -> ModelSize:
    """Exact size of a model with weights and cache in `dtype`. Needs no weights and allocates none.

    Args:
        bits: 8 for routed experts as int8 (`models.load`); everything else stays in `dtype`.

    Raises:
        BadInput: an unknown name (the message has the known ones and the closest match), 8 bits without experts, or a
            dtype that weights do not have.
        DamagedCheckpoint: the config of a tiny model is missing or not JSON.
    """
    return _size(check_name(name), pick_dtype(dtype), bits)


@cache
def _size(name: str, dtype: torch.dtype, bits: int) -> ModelSize:
    config, shaped = published_config(name), shapes(name)
    total = sum(shape.numel() for shape in shaped.values())

    # Routed experts are fused into one weight (experts, out, in); k of them work for a token.
    routed = [shape for key, shape in shaped.items() if ".experts." in key and len(shape) == 3]
    if bits not in (8, 16) or (bits == 8 and not routed):
        raise BadInput(f"bits is 16, or 8 for a model with routed experts: {name} with {bits} bits is not offered.")
    idle = sum((shape[0] - config.num_experts_per_tok) * shape[1:].numel() for shape in routed)

    # As int8 a value takes one byte, and each row of an expert a scale in fp32 and a zero point.
    saved = sum(shape.numel() * (dtype.itemsize - 1) - shape[:2].numel() * 5 for shape in routed) if bits == 8 else 0

    # Keys and values are what these projections put out; GPT-NeoX makes queries, keys and values in one.
    kv = sum(shape[0] for key, shape in shaped.items() if key.endswith(("k_proj.weight", "v_proj.weight")))
    kv += sum(shape[0] * 2 // 3 for key, shape in shaped.items() if key.endswith("query_key_value.weight"))

    # A Mamba layer keeps (d_inner, d_state) numbers in fp32, whatever the dtype, and the last d_conv inputs of its
    # convolution in the model's dtype.
    recurrent = sum(shape.numel() for key, shape in shaped.items() if key.endswith("A_log"))
    conv = sum(shape.numel() for key, shape in shaped.items() if key.endswith("conv1d.weight"))
    return ModelSize(
        total=total,
        active=total - idle,
        weight_bytes=total * dtype.itemsize - saved,
        kv_bytes_per_token=kv * dtype.itemsize,
        state_bytes=recurrent * torch.float32.itemsize + conv * dtype.itemsize,
        largest_bytes=max(shape.numel() for shape in shaped.values()) * dtype.itemsize,
    )


def shapes(name: str) -> dict[str, torch.Size]:
    """Name -> shape of every parameter of a model, a tied weight once. Raises as `size` does."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(published_config(check_name(name)), trust_remote_code=False)
    return {key: parameter.shape for key, parameter in model.named_parameters()}


def check_name(name: str) -> str:
    """Return `name` if the course has such a model; else raise BadInput with the known names and the closest one."""
    known = [*MODELS, *TINY]
    if name in known:
        return name
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f"the closest is {close[0]!r}, and " if close else ""
    raise BadInput(f"There is no model {name!r}: {hint}the course has {', '.join(known)}.")


def published_config(name: str):
    """The transformers config of a model: as published for a full one, as saved for a tiny one. No network."""
    from transformers import AutoConfig

    import shared.models.deepseek  # noqa: F401  registers model_type "deepseek"

    file = files.DATA / name / "config.json" if name in TINY else PUBLISHED / f"{name}.json"
    try:
        fields = dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{file} is missing or not JSON: {remedy(file)}.") from None
    fields.pop("auto_map", None)  # points to code on the hub, which the course never runs
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # each config class validates its fields in its own way
        why = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        raise DamagedCheckpoint(f"{file} describes no model that is known here ({why}): {remedy(file)}.") from error


def remedy(file: Path) -> str:
    """What to do about a damaged file or folder of the course, as the end of a sentence."""
    if not file.is_relative_to(files.DATA):
        return f"take {file} out of the folder that COURSE_MODELS names, or make it anew"
    rebuild = " and `make tiny` builds it anew" if file.is_relative_to(files.DATA / "tiny") else ""
    return f"`git checkout -- {file.relative_to(files.DATA.parent)}` restores it{rebuild}"


def download_bytes(name: str) -> int:
    """Bytes to download: a model's weights in their published type, a data set's first split as the hub lists it."""
    if name in MODELS:
        return size(name, published_config(name).dtype).weight_bytes
    return SOURCES[name].size
