"""What a model's cache holds, in two ways that have to agree: counted after a forward, and by a formula on the config.

The forward runs on the meta device, where tensors have shapes and no bytes: over one and two tokens, and over a few or
over enough to fill the largest window. A cache then is known at any length, layer by layer: bytes that each token adds,
up to a window where there is one, and states that stay as they are. Where count and formula differ, or a layer is of a
kind without a formula, there is an error in place of a number.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from shared import memory
from shared.errors import CourseError
from shared.machine import kernels

A_FEW = 8  # tokens after which a cache without a window has to lie on the line through one and two
FP32 = torch.float32.itemsize  # recurrent states are kept in it whatever the dtype of the model


@dataclass(frozen=True)
class LayerCache:
    """What one layer keeps of one sequence.

    per_token: bytes of keys and values that a token adds. kept: tokens after which a window is full, None without one.
    index: bytes that a token adds to the keys of an indexer, which chooses what sparse attention reads.
    conv, recurrent: bytes of states, whatever the context. beside: bytes that follow none of these rules, such as a
    prefix that every sequence has; no formula has them. latent: keys and values share a compressed vector (MLA).
    """

    per_token: int = 0
    kept: int | None = None
    index: int = 0
    conv: int = 0
    recurrent: int = 0
    beside: int = 0
    latent: bool = field(default=False, compare=False)

    def bytes(self, tokens: int) -> int:
        """Bytes after so many tokens."""
        held = tokens if self.kept is None else min(tokens, self.kept)
        return held * self.per_token + tokens * self.index + self.conv + self.recurrent + self.beside


# ---- counted ----------------------------------------------------------------------------------------------------


class Answered(TorchDispatchMode):
    """On the meta device, answers a question about values, which are not there ("is nothing padded?"), with yes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return args[0].dtype == torch.bool or 1
        return function(*args, **(kwargs or {}))


def counted(model) -> list[LayerCache]:
    """The cache of a model on the meta device after forwards, layer by layer.

    Raises: CourseError where the model cannot run there, or keeps no cache.
    """
    kernels.by_device(model)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("batched_mm")  # the one that asks for no values, in any dtype
    with torch.no_grad(), Answered():
        one, two = _held(model, 1), _held(model, 2)
        windows = [window for layer in two if (window := getattr(layer, "sliding_window", None))]
        longest = max(windows, default=A_FEW) + 1
        full = _held(model, longest)
    return [_layer(*parts, longest) for parts in zip(one, two, full, strict=True)]


def counted_alike(model, expected: list[LayerCache]) -> bool:
    """Whether a count says what is expected of each layer, where of layers that are built alike the first alone runs.

    That takes a tenth of the time. False also where layers cannot be left out, as where one takes what another made.
    """
    stacks = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == len(expected)]
    if len(stacks) != 1:
        return False
    (stack,) = stacks
    whole = stack._modules
    first: dict = {}
    for index, (layer, keeps) in enumerate(zip(stack, expected, strict=True)):
        shapes = tuple((name, tensor.shape) for name, tensor in layer.named_parameters())
        classes = tuple(type(part) for part in layer.modules())
        first.setdefault((keeps, shapes, classes), index)
    chosen = list(first.values())
    stack._modules = {str(place): whole[str(index)] for place, index in enumerate(chosen)}
    try:
        found = counted(model)
    except CourseError:
        return False
    finally:
        stack._modules = whole
    # Each layer keeps its own place in the cache; those that did not run left nothing in theirs.
    return found == [keeps if index in chosen else LayerCache() for index, keeps in enumerate(expected)]


def _held(model, tokens: int) -> list:
    """The layers of the cache after a forward over so many tokens."""
    ids = torch.ones((1, tokens), dtype=torch.long, device="meta")
    kind = model.config.model_type
    try:
        out = model(input_ids=ids, use_cache=True)
    except Exception as error:  # whatever a family's own code raises on tensors without values
        why = " ".join(str(error).split())[:90].rstrip(". ")
        raise CourseError(
            f"The cache of a model of type {kind!r} cannot be counted, since its forward does not run without weights "
            f"({type(error).__name__}: {why}): load it and count with memory.cache_bytes."
        ) from error
    cache = next((held for name in ("past_key_values", "cache_params") if (held := getattr(out, name, None))), None)
    try:
        return memory.cache_layers(cache)
    except TypeError:
        raise CourseError(
            f"A model of type {kind!r} keeps no cache that transformers' Cache describes "
            f"({type(cache).__name__}): its bytes over the context are not known here."
        ) from None


def _layer(one, two, full, tokens: int) -> LayerCache:
    """What a layer keeps, from what it held after one, two and `tokens` tokens."""
    at_one, at_two, at_full = (memory.layer_bytes(layer) for layer in (one, two, full))
    grown = at_two.growing - at_one.growing
    index = at_two.index - at_one.index
    kept = at_full.growing // grown if grown and at_full.growing < tokens * grown else None
    layer = LayerCache(grown, kept, index, at_one.conv, at_one.recurrent, latent=bool(at_one.latent))
    held = {1: at_one.total, 2: at_two.total, tokens: at_full.total}
    return replace(layer, beside=sum(abs(total - layer.bytes(at)) for at, total in held.items()))


# ---- by formula -------------------------------------------------------------------------------------------------

# The fields of each family's config. Mamba-1: inner width, state, convolution.
MAMBA = {
    "mamba": ("intermediate_size", "state_size", "conv_kernel"),
    "falcon_mamba": ("intermediate_size", "state_size", "conv_kernel"),
    "jamba": ("hidden_size", "mamba_d_state", "mamba_d_conv"),  # times mamba_expand
    "zamba": ("hidden_size", "mamba_d_state", "mamba_d_conv"),
}
# Mamba-2: heads, their dimension, state, groups that share keys and queries, convolution.
MAMBA2 = {
    "mamba2": ("num_heads", "head_dim", "state_size", "n_groups", "conv_kernel"),
    "nemotron_h": ("mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "conv_kernel"),
    "bamba": ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"),
    "falcon_h1": ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"),
    "granitemoehybrid": ("mamba_n_heads", "mamba_d_head", "mamba_d_state", "mamba_n_groups", "mamba_d_conv"),
    "zamba2": ("n_mamba_heads", "mamba_headdim", "mamba_d_state", "mamba_ngroups", "mamba_d_conv"),
}
GATED_DELTANET = (
    "olmo_hybrid",
    "qwen3_5",
    "qwen3_5_text",
    "qwen3_5_moe",
    "qwen3_5_moe_text",
    "qwen3_next",
)
KIMI_DELTA = ("kimi_linear", "bailing_hybrid")
SHORT_CONVOLUTION = ("lfm2", "lfm2_moe", "lfm3")


def _mamba(c, itemsize: int) -> dict[str, int]:
    """A state of N numbers a channel, and the last inputs of a convolution over the channels."""
    width, state, kernel = (getattr(c, name) for name in MAMBA[c.model_type])
    channels = width * getattr(c, "mamba_expand", 1)
    return {"recurrent": channels * state * FP32, "conv": channels * kernel * itemsize}


def _mamba2(c, itemsize: int) -> dict[str, int]:
    """A matrix (dimension, N) a head; the convolution also runs over the B and C of every group."""
    heads, dimension, state, groups, kernel = (getattr(c, name) for name in MAMBA2[c.model_type])
    channels = heads * dimension + 2 * groups * state
    return {"recurrent": heads * dimension * state * FP32, "conv": channels * kernel * itemsize}


def _gated_deltanet(c, itemsize: int) -> dict[str, int]:
    """A matrix of keys by values a value head; the convolution runs over queries, keys and values."""
    keys, values = c.linear_num_key_heads * c.linear_key_head_dim, c.linear_num_value_heads * c.linear_value_head_dim
    channels = 2 * keys + values
    return {"recurrent": values * c.linear_key_head_dim * FP32, "conv": channels * c.linear_conv_kernel_dim * itemsize}


def _kimi_delta(c, itemsize: int) -> dict[str, int]:
    """A square matrix a head, and a convolution over queries, keys and values."""
    width = c.linear_num_heads * c.linear_head_dim
    kernel = getattr(c, "linear_conv_kernel_dim", None) or c.short_conv_kernel_size
    return {"recurrent": width * c.linear_head_dim * FP32, "conv": 3 * width * kernel * itemsize}


def _short_convolution(c, itemsize: int) -> dict[str, int]:
    """The last inputs of a convolution, and nothing else."""
    return {"conv": c.hidden_size * c.conv_L_cache * itemsize}


def _lightning(c, itemsize: int) -> dict[str, int]:
    """MiniMax's linear attention: a square matrix a head, in the dtype of the model."""
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    return {"recurrent": c.num_attention_heads * head_dim**2 * itemsize}


def _inkling(c, itemsize: int) -> dict[str, int]:
    """Four short convolutions, in float32: over keys, over values, and twice over the residual stream."""
    channels = 2 * c.num_key_value_heads * c.head_dim + 2 * c.hidden_size
    return {"conv": channels * c.conv_kernel_size * FP32}


def _zaya(c, itemsize: int) -> dict[str, int]:
    """A convolution over queries and keys, in two steps, and the half of the values that comes a token later."""
    keys, queries = (heads * c.head_dim for heads in (c.num_key_value_heads, c.num_attention_heads))
    kernel = c.cca_time0 - 1 + c.cca_time1 - 1
    return {"conv": (keys + queries) * kernel * itemsize, "recurrent": keys // 2 * itemsize}


STATES: dict[str, Callable] = {
    **dict.fromkeys(MAMBA, _mamba),
    **dict.fromkeys(MAMBA2, _mamba2),
    **dict.fromkeys(GATED_DELTANET, _gated_deltanet),
    **dict.fromkeys(KIMI_DELTA, _kimi_delta),
    **dict.fromkeys(SHORT_CONVOLUTION, _short_convolution),
    "minimax": _lightning,
    "inkling_text": _inkling,
    "inkling2_text": _inkling,
    "zaya": _zaya,
}


def _in_a_window(c):
    """The config of a layer with a window, in families that give it other heads than the rest."""
    c = copy(c)
    if getattr(c, "swa_num_key_value_heads", None):
        c.num_key_value_heads = c.swa_num_key_value_heads
        c.head_dim = c.swa_head_dim
    elif c.model_type == "mimo_v2_flash":
        c.num_key_value_heads = 2 * c.num_key_value_heads
    return c


def _attention(c, itemsize: int) -> dict:
    """Keys and values of the heads that have their own; or the latent vector in their place, and its positions."""
    if getattr(c, "kv_lora_rank", None):
        return {"per_token": (c.kv_lora_rank + c.qk_rope_head_dim) * itemsize, "latent": True}
    heads = c.num_attention_heads
    if getattr(c, "multi_query", False) and not getattr(c, "new_decoder_architecture", False):
        heads_kept = 1
    else:
        heads_kept = next((n for name in KV_HEADS if (n := getattr(c, name, None))), heads)
    dimension = next((n for name in HEAD_DIM if (n := getattr(c, name, None))), None) or c.hidden_size // heads
    values = getattr(c, "v_head_dim", None) or dimension
    return {"per_token": heads_kept * (dimension + values) * itemsize}


KV_HEADS = ("num_key_value_heads", "num_kv_heads")
HEAD_DIM = ("head_dim", "attention_head_dim")


def by_formula(config, dtype: torch.dtype) -> list[LayerCache]:
    """The cache that a config asks for, layer by layer.

    Raises: CourseError for a type of layer that has no formula here.
    """
    from transformers.cache_utils import get_layer_types_and_kwargs

    config = config.get_text_config(decoder=True)
    layers = []
    types, options = get_layer_types_and_kwargs(config)
    indexers = getattr(config, "indexer_types", None) or ["full"] * len(types)
    for kind, option, indexer, c in zip(types, options, indexers, config.per_layer_config, strict=True):
        parts: dict = {}
        if "sliding" in kind:
            c = _in_a_window(c)
        if kind in ("full_attention", "sliding_attention", "chunked_attention", "hybrid", "hybrid_sliding"):
            parts |= _attention(c, dtype.itemsize)
        if kind == "indexed_attention":
            parts |= _attention(c, dtype.itemsize)
            # The indexer chooses what attention reads, by one key a token; a layer may share that of one before it.
            itemsize = FP32 if config.model_type == "dots3_note_text" else dtype.itemsize
            parts["index"] = c.index_head_dim * itemsize if indexer == "full" else 0
        if "sliding_window" in option:
            parts["kept"] = option["sliding_window"] - 1  # the next token makes the window full
        if kind in ("linear_attention", "conv", "hybrid", "hybrid_sliding"):
            if config.model_type not in STATES:
                raise CourseError(
                    f"A layer of type {kind!r} in a model of type {config.model_type!r} keeps a state for which the "
                    "course has no formula: load it and count with memory.cache_bytes."
                )
            parts |= STATES[config.model_type](c, dtype.itemsize)
        if not parts and kind != "dummy":
            raise CourseError(
                f"The course has no formula for the cache of a layer of type {kind!r}, which a model of type "
                f"{config.model_type!r} has: load it and count with memory.cache_bytes."
            )
        layers.append(LayerCache(**parts))
    return layers


# ---- both -------------------------------------------------------------------------------------------------------


def layers(model) -> list[LayerCache]:
    """The cache of a model on the meta device, by formula, where a count says the same.

    Raises: CourseError where they differ, or as `counted` and `by_formula` do.
    """
    kind = model.config.model_type
    try:
        expected = by_formula(model.config, model.dtype)
    except (AttributeError, TypeError, ValueError) as error:  # a field has another name in this family, or is absent
        why = str(error).splitlines()[0].rstrip(".")
        raise CourseError(
            f"The course has no formula for the cache of a model of type {kind!r} ({why}): load it and count with "
            "memory.cache_bytes."
        ) from error
    if counted_alike(model, expected):
        return expected
    found, wanted = ([layer for layer in each if layer != LayerCache()] for each in (counted(model), expected))
    if found != wanted:
        tokens = 1000
        counts, formula = (sum(layer.bytes(tokens) for layer in each) for each in (found, wanted))
        raise CourseError(
            f"The cache of a model of type {kind!r} is {counts:,} bytes after {tokens:,} tokens as counted in "
            f"{len(found)} layers, and {formula:,} by the formula from its config in {len(wanted)}: neither is given "
            "as its size, so load it and count with memory.cache_bytes."
        )
    return expected
