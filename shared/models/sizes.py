"""How large each model of the course is: parameters, weights, cache. Computed from its config, never typed in.

Names are those of the published configs in data/models/ ("mamba-2.8b") and of the tiny models that ship with the course
("tiny/mamba"). A model is built on the meta device, where tensors have shapes and no bytes, and its shapes are counted;
`caches` runs it there and counts what it keeps.
"""

import difflib
import json
import os
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch

from shared import files
from shared.errors import BadInput, CourseError, DamagedCheckpoint
from shared.hub.catalogue import CONFIGS, MODELS, SOURCES
from shared.models import caches

# Where the published configs are read; a rehearsal of scale full puts those of its small stand-ins in their place.
PUBLISHED = Path(os.environ.get("COURSE_MODELS") or files.DATA / "models")

TINY = tuple(f"tiny/{m}" for m in ("mamba", "transformer", "olmoe", "olmoe-collapsed", "deepseek-moe", "jamba"))


@dataclass(frozen=True)
class ModelSize:
    """Parameters and bytes of a model at batch 1.

    total: parameters, tied weights counted once. active: those that work for one token, so without the experts that the
    router leaves out. kv_bytes_per_token: what each token adds to the cache, however long it is: keys and values, or
    what MLA and sparse attention keep in their place. state_bytes: recurrent and convolution states, whatever the
    context. windows: (tokens, bytes per token) of the layers that keep the last tokens alone, once for each length.
    recurrent_bytes: the part of `state_bytes` that is no convolution. latent_bytes_per_token, index_bytes_per_token:
    the parts of `kv_bytes_per_token` that are MLA's and an indexer's. largest_bytes: the largest parameter in `dtype`,
    such as the fused experts of a layer.
    """

    total: int
    active: int
    weight_bytes: int
    kv_bytes_per_token: int
    state_bytes: int
    windows: tuple[tuple[int, int], ...] = ()
    recurrent_bytes: int = field(default=0, compare=False)
    latent_bytes_per_token: int = field(default=0, compare=False)
    index_bytes_per_token: int = field(default=0, compare=False)
    largest_bytes: int = field(default=0, compare=False)

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of the cache after so many tokens of one sequence; 0 before the first."""
        if tokens == 0:
            return 0
        windows = sum(min(tokens, kept) * per_token for kept, per_token in self.windows)
        return tokens * self.kv_bytes_per_token + windows + self.state_bytes


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
    return of_config(published_config(name), dtype, bits, name)


def of_config(config, dtype: torch.dtype = torch.bfloat16, bits: int = 16, name: str = "this model") -> ModelSize:
    """As `size`, for any config that transformers knows. Raises: CourseError where its cache is not known for sure."""
    model = on_meta(config, dtype)
    shaped = {key: parameter.shape for key, parameter in model.named_parameters()}
    total = sum(shape.numel() for shape in shaped.values())

    # Routed experts are fused into one weight (experts, out, in), with a bias (experts, out) in some families; k of
    # them work for a token.
    experts = routed(model)
    weights = [shape for key, shape in experts.items() if len(shape) == 3]
    if bits not in (8, 16) or (bits == 8 and not weights):
        raise BadInput(f"bits is 16, or 8 for a model with routed experts: {name} with {bits} bits is not offered.")
    working = top_k(config) if experts else 0
    idle = sum((shape[0] - working) * shape[1:].numel() for shape in experts.values())

    # As int8 a value takes one byte, and each row of an expert a scale in fp32 and a zero point.
    saved = sum(shape.numel() * (dtype.itemsize - 1) - shape[:2].numel() * 5 for shape in weights) if bits == 8 else 0

    layers = caches.layers(model)
    growing = [layer for layer in layers if layer.kept is None]
    lengths = sorted({layer.kept for layer in layers if layer.kept is not None})
    return ModelSize(
        total=total,
        active=total - idle,
        weight_bytes=total * dtype.itemsize - saved,
        kv_bytes_per_token=sum(layer.per_token for layer in growing) + sum(layer.index for layer in layers),
        state_bytes=sum(layer.recurrent + layer.conv for layer in layers),
        windows=tuple((kept, sum(layer.per_token for layer in layers if layer.kept == kept)) for kept in lengths),
        recurrent_bytes=sum(layer.recurrent for layer in layers),
        latent_bytes_per_token=sum(layer.per_token for layer in growing if layer.latent),
        index_bytes_per_token=sum(layer.index for layer in layers),
        largest_bytes=max(shape.numel() for shape in shaped.values()) * dtype.itemsize,
    )


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


def on_meta(config, dtype: torch.dtype = torch.bfloat16):
    """A model that has shapes and no bytes, in evaluation mode. Code that a config names is never run.

    Raises: BadInput for a config from which its classes build no model.
    """
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
    except Exception as error:  # fields that do not fit each other show where the layers are made
        raise BadInput(
            f"A model of type {config.model_type!r} cannot be built from this config ({first_sentence(error)})."
        ) from error


def shapes(name: str) -> dict[str, torch.Size]:
    """Name -> shape of every parameter of a model, a tied weight once. Raises as `size` does."""
    return {key: parameter.shape for key, parameter in on_meta(published_config(check_name(name))).named_parameters()}


def routed(model) -> dict[str, torch.Size]:
    """Name -> shape of the parameters of routed experts, whose first dimension counts experts.

    Raises: CourseError for a mixture whose experts are laid out otherwise: how many parameters work is unknown then.
    """
    config = model.config.get_text_config(decoder=True)
    count = next((n for name in EXPERTS if (n := getattr(config, name, None))), 0)
    found = {key: parameter.shape for key, parameter in model.named_parameters() if ".experts." in key}
    if (count or 0) > 1 and (not found or any(shape[0] != count for shape in found.values())):
        raise CourseError(
            f"A model of type {config.model_type!r} has {count} experts and keeps them in a way that is not known "
            "here: how many of its parameters work for a token cannot be counted."
        )
    return found


EXPERTS = ("num_local_experts", "n_routed_experts", "num_experts", "moe_num_experts")
TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "moe_top_k")


def top_k(config) -> int:
    """The routed experts that work for a token. Raises: CourseError where the config does not say one number."""
    config = config.get_text_config(decoder=True)
    found = next((k for name in TOP_K if (k := getattr(config, name, None))), None)
    if not isinstance(found, int):
        raise CourseError(
            f"The config of a model of type {config.model_type!r} does not say how many experts work for a token in a "
            f"field that is known here ({', '.join(TOP_K)}): its active parameters cannot be counted."
        )
    return found


def check_name(name: str) -> str:
    """Return `name` if the course has such a model; else raise BadInput with the known names and the closest one."""
    known = [*MODELS, *CONFIGS, *TINY]
    if name in known:
        return name
    close = difflib.get_close_matches(str(name).lower(), known, n=1)
    hint = f"the closest is {close[0]!r}, and " if close else ""
    raise BadInput(f"There is no model {name!r}: {hint}the course has {', '.join(known)}.")


def published_config(name: str):
    """The transformers config of a model: as published for a full one, as saved for a tiny one. No network."""
    from transformers import AutoConfig

    from shared.models import deepseek

    deepseek.register()
    if name in TINY:
        file = files.DATA / name / "config.json"
    else:
        file = (files.DATA / "models" if name in CONFIGS else PUBLISHED) / f"{name}.json"
    try:
        fields = dict(json.loads(file.read_text()))
    except (OSError, TypeError, ValueError):
        raise DamagedCheckpoint(f"{file} is missing or not JSON: {remedy(file)}.") from None
    fields.pop("auto_map", None)  # points to code on the hub, which the course never runs
    try:
        return AutoConfig.for_model(**fields)
    except Exception as error:  # each config class validates its fields in its own way
        why = first_sentence(error)
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
