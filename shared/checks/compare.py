"""Whether what came is the right value, whatever its type, and one sentence for how it is not."""

import math
import numbers
from collections.abc import Callable, Iterable, Mapping

CLOSE = 1e-5  # relative: arithmetic in float32 is right
WHOLE = 1e-12  # relative: whole numbers are exact, also where they come out of a division
NOTHING = 1e-12  # smaller numbers are what rounding leaves of 0


class Wrong(Exception):
    """An answer that is not right; the message says what was expected, what came and the likely mistake."""


def expect(
    came: object,
    right: object,
    what: str,
    mistakes: Mapping[str, object | Callable[[], object]] | None = None,
    rel: float = CLOSE,
) -> None:
    """Raise `Wrong` unless `came` has the value of `right`.

    A number is what float() takes, but no text; a tensor what torch.as_tensor takes, or tensors of one shape; a pair
    whatever unpacks to two; a dict any mapping. Numbers may differ by `rel` of the right one, tensors by `rel` of the
    largest value of the right one, whole numbers by what float64 leaves. inf equals only inf; nothing equals nan.

    what: what was computed ("the cache of 2 layers and 3 tokens"). mistakes: explanation of a known mistake -> the
    value that it leads to, or a function without arguments that returns it, called only where the answer is wrong.
    Source: ARENA's tests, which name the bug.
    """
    fault = difference(came, right, rel)
    if fault is None:
        return
    if came is None:
        raise Wrong(
            f"{what}: expected {shown(right)}, got None. Does every way through your function end in a return? If its "
            "cell stopped with an error, the version from before that is still the one that is checked."
        )
    reason = next((f" {why}" for why, value in (mistakes or {}).items() if _leads_to(value, came, rel)), "")
    raise Wrong(f"{what}: {fault}.{reason}")


def _leads_to(mistake: object, came: object, rel: float) -> bool:
    try:
        return difference(came, mistake() if callable(mistake) else mistake, rel) is None
    except Exception:  # a mistake need not have a value in every case
        return False


def difference(came: object, right: object, rel: float = CLOSE) -> str | None:
    """None where `came` has the value of `right`; else what was expected and what came, without a full stop."""
    import torch

    if isinstance(right, torch.Tensor) and right.dim():
        return _tensor(came, right, rel)
    if isinstance(right, Mapping):
        return _mapping(came, right, rel)
    if isinstance(right, (set, frozenset)):
        same = isinstance(came, Iterable) and not isinstance(came, str) and set(came) == right
        return None if same else f"expected {shown(sorted(right))}, got {shown(came)}"
    if isinstance(right, (tuple, list)):
        return _sequence(came, right, rel)
    if isinstance(right, (numbers.Number, torch.Tensor)) or (
        hasattr(right, "dtype") and getattr(right, "ndim", 1) == 0
    ):
        return _number(came, right, rel)
    try:
        same = isinstance(came, type(right)) and bool(came == right)
    except (TypeError, ValueError, RuntimeError):
        same = False
    return None if same else f"expected {shown(right)}, got {shown(came)}"


def _number(came: object, right: object, rel: float) -> str | None:
    wanted = right.item() if hasattr(right, "item") else right
    try:
        if isinstance(came, (str, bytes)):
            raise TypeError
        value = float(came.detach() if hasattr(came, "detach") else came)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return f"expected {shown(wanted)}, got {shown(came)}"
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        rel = min(rel, WHOLE)
    scale = abs(wanted) if abs(wanted) > NOTHING else 1
    if value == wanted or (math.isfinite(wanted) and abs(value - wanted) <= rel * scale):
        return None
    return "expected {}, got {}".format(*_apart(wanted, came if isinstance(came, int) else value))


def _tensor(came: object, right, rel: float) -> str | None:
    import torch

    value = as_tensor(came)
    if value is None:
        return f"expected a tensor {tuple(right.shape)}, got {shown(came)}"
    if value.shape != right.shape:
        return f"expected the shape {tuple(right.shape)}, got {tuple(value.shape)}"
    if value.is_complex() and not right.is_complex():
        return "expected real numbers, got complex ones"
    exact = not right.is_floating_point() and not right.is_complex()
    kind = torch.complex128 if right.is_complex() else torch.float64
    value, wanted = value.detach().cpu().to(kind), right.detach().cpu().to(kind)
    if not wanted.numel():
        return None
    finite = wanted.isfinite()
    scale = wanted[finite].abs().max().item() if finite.any() else 0
    scale = scale if scale > NOTHING else 1
    error = torch.where(finite, (value - wanted).abs(), torch.where(value == wanted, 0.0, math.inf))
    error = error.nan_to_num(math.inf, math.inf)
    worst = error.max().item()
    if worst <= (1e-9 if exact else rel * scale):
        return None
    place = torch.unravel_index(error.argmax(), error.shape)
    at = [int(i) for i in place]
    expected, got = _apart(wanted[place].item(), value[place].item())
    if exact:
        expected, got = expected.removesuffix(".0"), got.removesuffix(".0")
    size = f"off by {worst / scale:.1e} of the largest value; " if math.isfinite(worst) and not exact else ""
    return f"{size}at {at} expected {expected}, got {got}"


def as_tensor(value: object):
    """The value as a tensor: arrays, series, numbers in lists, tensors of one shape in a list. None for all else."""
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        return value
    if hasattr(value, "to_numpy"):  # a series of pandas: torch would take its labels for places
        value = value.to_numpy(copy=True)
    if isinstance(value, np.ndarray) and not value.flags.writeable:
        value = value.copy()  # torch warns of memory that it must not write to, such as that of a table
    try:
        if isinstance(value, (list, tuple)) and value and all(isinstance(v, torch.Tensor) for v in value):
            return torch.stack(list(value))
        if isinstance(value, (str, bytes, Mapping)) or value is None:
            return None
        tensor = torch.as_tensor(value)
        exact = isinstance(value, (list, tuple)) and tensor.is_floating_point()  # Python's floats are float64
        return torch.as_tensor(value, dtype=torch.float64) if exact else tensor
    except (TypeError, ValueError, RuntimeError):
        return None


def _mapping(came: object, right: Mapping, rel: float) -> str | None:
    if not isinstance(came, Mapping):
        return f"expected a dict with {shown(list(right))}, got {shown(came)}"
    missing, more = [k for k in right if k not in came], [k for k in came if k not in right]
    if missing or more:
        said = [f"{word} {shown(keys)}" for word, keys in (("without", missing), ("with", more)) if keys]
        return f"expected a dict with {shown(list(right))}, got one {' and '.join(said)}"
    for key, value in right.items():
        if fault := difference(came[key], value, rel):
            return f"{key!r}: {fault}"
    return None


def _sequence(came: object, right, rel: float) -> str | None:
    parts = list_of(came)
    plain = all(isinstance(r, (numbers.Number, str)) for r in right)
    if parts is None or len(parts) != len(right):
        kind = shown(right) if plain and len(right) <= 12 else f"{len(right)} values"
        number = f"{len(parts)}: " if parts is not None and not plain else ""
        return f"expected {kind}, got {number}{shown(came)}"
    for number, (part, wanted) in enumerate(zip(parts, right, strict=True)):
        if fault := difference(part, wanted, rel):
            if plain and len(right) <= 12:
                return "expected {}, got {}".format(*_apart(right, parts))
            return f"result {number + 1} of {len(right)}: {fault}"
    return None


def list_of(value: object) -> list | None:
    """What unpacks as a list: lists, tuples, arrays, tensors, series. None for text, mappings, sets, single values."""
    if isinstance(value, (str, bytes, Mapping, set, frozenset)):
        return None
    try:
        return list(value)
    except TypeError:
        return None


def unpacked(came: object, number: int, what: str) -> list:
    """The `number` parts of a result; `Wrong` with `what` it should be, such as "two tensors, A_bar and B_bar"."""
    parts = list_of(came)
    if parts is None or len(parts) != number:
        raise Wrong(f"expected {what}, got {shown(came)}.{' Is the return missing?' if came is None else ''}")
    return parts


def shown(value: object, digits: int = 6) -> str:
    """A value as a student reads it: short, tensors by their shape or few values."""
    import torch

    if isinstance(value, torch.Tensor):
        return f"a tensor {tuple(value.shape)}" if value.dim() and value.numel() > 12 else str(value.tolist())
    if isinstance(value, (tuple, list)):
        text = ", ".join(shown(v, digits) for v in value[:12]) + ", ..." * (len(value) > 12)
        return f"[{text}]" if isinstance(value, list) else f"({text})"
    if isinstance(value, float):
        return f"{value:,.{digits}g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _apart(right: object, came: object) -> tuple[str, str]:
    """Both as text, with as many digits as tell them apart: "expected 0.7, got 0.7" helps nobody."""
    for digits in range(6, 18):
        texts = shown(right, digits), shown(came, digits)
        if texts[0] != texts[1]:
            break
    return texts
