"""How large each model of the course is: parameters, weights, cache. Computed from its config, never typed in.

A model is built on the meta device, where tensors have shapes and no bytes, and its shapes are counted; `caches` runs
it there and counts what it keeps.
"""

from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache

import torch

from shared.errors import BadInput, CourseError
from shared.hub.catalogue import MODELS, SOURCES
from shared.models import caches
from shared.models.cards import Card, card, first_sentence, published_config


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
    return of_card(card(name), pick_dtype(dtype), bits)


@cache
def of_card(card: Card, dtype: torch.dtype = torch.bfloat16, bits: int = 16) -> ModelSize:
    """As `size`, for a model that has been looked up."""
    return of_config(card.config, dtype, bits, card.name)


def of_config(config, dtype: torch.dtype = torch.bfloat16, bits: int = 16, name: str = "this model") -> ModelSize:
    """As `size`, for any config that transformers knows. Raises: CourseError where its cache is not known for sure."""
    model = on_meta(deepcopy(config), dtype)  # to count, the model is set to other ways of running
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
    return {key: parameter.shape for key, parameter in on_meta(published_config(name)).named_parameters()}


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


def download_bytes(name: str) -> int:
    """Bytes to download: a model's weights in their published type, a data set's first split as the hub lists it."""
    if name in MODELS:
        return published_bytes(card(name))
    return SOURCES[name].size


def published_bytes(card: Card) -> int:
    """Bytes of a model's weights in the type in which they are published."""
    return of_card(card, card.config.dtype).weight_bytes
