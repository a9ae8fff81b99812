"""Whether a model fits into the memory that is free, and what else does; asked before anything is loaded or fetched."""

from dataclasses import dataclass, replace

import torch

from shared.machine import guard, pool
from shared.models import streaming
from shared.models.cards import MODELS, TINY, Card, card
from shared.models.sizes import of_card, pick_dtype, size
from shared.units import human


@dataclass(frozen=True)
class Fit:
    """Whether a model and its cache fit into memory: `print(fit)` says it in a sentence, `if fit:` works."""

    fits: bool
    needed_bytes: int
    available_bytes: int
    reason: str

    def __bool__(self) -> bool:
        return self.fits

    def __str__(self) -> str:
        return self.reason


def fits(
    name: str, context: int = 0, device=None, dtype: torch.dtype = torch.bfloat16, weights="trained", bits: int = 16
) -> Fit:
    """Whether the weights and the cache of one sequence of `context` tokens fit into what is free on `device`.

    Activations are not in it. On unified memory, where running out hangs the machine instead of raising, a reserve is
    left free (`guard.reserve`), and what is in flight while trained weights are loaded counts. Where it does not fit,
    the reason says what does: the model with 8-bit experts, or the largest smaller model, of the same kind if there is
    one. `bits`: as in `load`.
    """
    return fits_of(card(name), context, pool.present_device(device), pick_dtype(dtype), weights, bits)


def fits_of(card: Card, context: int, device: torch.device, dtype: torch.dtype, weights: str, bits: int) -> Fit:
    """As `fits`, for a model that has been looked up."""
    fit = _fit(card, context, device, dtype, weights, bits)
    if fit:
        return fit
    advice = _what_fits(card, context, device, dtype, weights, bits)
    return replace(fit, reason=f"{fit.reason[:-1]}; {advice}.")


def in_flight(name: str, dtype: torch.dtype = torch.bfloat16, bits: int = 16) -> int:
    """Bytes beside the weights while trained ones are loaded into unified memory, tensor by tensor."""
    return streaming.IN_FLIGHT * size(name, dtype, bits).largest_bytes


def _fit(card: Card, context: int, device, dtype, weights, bits) -> Fit:
    parts = of_card(card, dtype, bits)
    extra = streaming.IN_FLIGHT * parts.largest_bytes if weights == "trained" and pool.is_unified(device) else 0
    needed, free, kept = (
        parts.weight_bytes + extra + parts.cache_bytes(context),
        guard.budget(device),
        guard.reserve(device),
    )
    added = ["8-bit experts"] * (bits == 8) + [f"{context:,} tokens of context"] * (context > 0)
    what = f"{card.name} with {' and '.join(added)}" if added else card.name
    loading = f" ({human(extra)} of it while it loads)" if extra else ""
    verb = "fits" if needed <= free else "does not fit"
    reason = f"{what} {verb}: it needs {human(needed)}{loading} on {device} and {human(free)} are available"
    reason += f" beside the {human(kept)} that stay free" if kept else ""
    return Fit(needed <= free, needed, free, f"{reason}.")


def _what_fits(card: Card, context: int, device, dtype, weights, bits) -> str:
    """The end of a sentence for who lacks memory."""
    offers, own = [], of_card(card)
    if bits == 16 and weights == "trained" and own.active < own.total:
        eight = _fit(card, context, device, dtype, weights, 8)
        if eight:
            offers.append(f"with bits=8 it needs {human(eight.needed_bytes)} and fits")
    smaller = [other for other in _others() if of_card(other).total < own.total]
    smaller = [other for other in smaller if _fit(other, context, device, dtype, weights, 16)]
    if smaller:
        kind = card.config.model_type
        rank = lambda it: (it.folder is None, it.config.model_type == kind, of_card(it).total)  # noqa: E731
        nearest = max(smaller, key=rank)
        offers.append(f"the smaller {nearest.name} fits")
    return ", ".join(offers) or "no model of the course fits: close what else holds memory"


def _others() -> list[Card]:
    """The models that come with weights; the tiny ones where all of them are built."""
    tiny = [card(name) for name in TINY]
    return [card(name) for name in MODELS] + (tiny if all(one.file.exists() for one in tiny) else [])
