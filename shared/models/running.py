"""A model in memory: one forward whatever its cache is called, its positions, its path, a hash of its weights."""

import hashlib
import importlib
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from shared.errors import ContextTooLong
from shared.machine import kernels

STATE_ONLY = ("mamba", "falcon_mamba", "mamba2")  # model types whose cache is a state of fixed size and nothing else


def forward(model, input_ids: torch.Tensor, cache=None, keep: int = 1, use_cache: bool = True):
    """One forward: logits of the last `keep` positions (B, keep, V) and the cache (None without `use_cache`).

    Mamba calls its cache `cache_params`, everything else `past_key_values`; the rest is the same. A model with neither
    (Rwkv) gives None. Only the logits that are asked for are computed: those of 100,000 positions would take 20 GB.
    """
    name = "cache_params" if model.config.model_type in STATE_ONLY else "past_key_values"
    given = {name: cache} if cache is not None else {}
    output = model(input_ids, use_cache=use_cache, logits_to_keep=keep, **given)
    # Some models make all logits whatever they are asked.
    return output.logits[:, -keep:], getattr(output, name, None)


@contextmanager
def in_eval(model) -> Iterator[None]:
    """Inside the with, a model that trains runs without dropout; each of its modules goes on as it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def positions(model) -> float:
    """How many tokens a model has positions for; math.inf where nothing limits it, as in Mamba."""
    return getattr(model.config, "max_position_embeddings", None) or math.inf


def check_context(model, length: int) -> None:
    """Raise ContextTooLong if `length` tokens are more than the model has positions for. Mamba has no such limit."""
    most = positions(model)
    if length > most:
        raise ContextTooLong(
            f"{type(model).__name__} has {most:,} positions and {length:,} tokens were asked for: shorten the context "
            f"to {most:,} tokens, or take a Mamba model, which has no such limit."
        )


def path(model) -> str:
    """Which code runs the Mamba scan: "kernel" (mamba-ssm), "reference" (transformers' loop), "course" (shared.scan),
    or "no scan" for a model without one; Mamba-2 has none, it multiplies matrices in chunks. The kernel runs on a GPU
    only, so the device decides with what is installed.
    """
    kind = model.config.model_type
    if kind not in kernels.FAMILIES:
        return "no scan"
    scan = importlib.import_module(f"transformers.models.{kind}.modeling_{kind}").mamba_selective_scan
    chosen = kernels.chosen(scan, gpu=model.device.type == "cuda").__module__.split(".")[0]
    return {"transformers": "reference", "shared": "course"}.get(chosen, "kernel")


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of every bit of the tensors: equal hashes, equal weights."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode() + tensors[name].detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
