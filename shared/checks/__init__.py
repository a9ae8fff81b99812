"""How an exercise is checked: one green line, or what was expected, what came and why that usually happens.

A check is a function that takes the student's answer and raises `Wrong` when it is not right. The decorator `exercise`
turns it into what a lab calls: it prints the verdict and hands back the function that the rest of the lab uses, the
student's where it is right and the course's own (from `labs/solutions`) where it is not, so a lab never dead-ends.
"""

import functools
import sys
import traceback
from collections.abc import Callable

from shared import files, notebooks
from shared.notebooks.notice import FAILED, OPEN, PASSED, marked


class Wrong(Exception):
    """An answer that is not right; the message says what was expected, what came and the likely mistake."""


def expect(
    came: object, right: object, what: str, mistakes: dict[str, object] | None = None, rel: float = 1e-9
) -> None:
    """Raise `Wrong` unless `came` equals `right` within the relative tolerance `rel`.

    `what` says what was computed ("the cache of 2 layers and 3 tokens"); `mistakes` maps the explanation of a known
    mistake to the value that it leads to, so that the message can name it. Source: ARENA's tests, which name the bug.
    """
    if _equal(came, right, rel):
        return
    reason = next((why for why, value in (mistakes or {}).items() if _equal(came, value, rel)), None)
    raise Wrong(f"{what}: expected {_show(right)}, got {_show(came)}." + (f" {reason}" if reason else ""))


def expect_close(
    came: object, right: object, what: str, mistakes: dict[str, Callable] | None = None, tolerance: float = 1e-6
) -> None:
    """Raise `Wrong` unless the tensor `came` equals the tensor `right`, relative to the largest value of `right`.

    `mistakes` maps the explanation of a known mistake to a function without arguments that returns what it leads to:
    most answers are right, and then no mistake is computed.
    """
    import torch

    if not isinstance(came, torch.Tensor):
        raise Wrong(f"{what}: expected a tensor {tuple(right.shape)}, got {came!r}.")
    if came.shape == right.shape and (error := _largest_difference(came, right)) <= tolerance:
        return
    reason = ""
    for why, wrong in (mistakes or {}).items():
        wrong = wrong()
        if came.shape == wrong.shape and _largest_difference(came, wrong) <= tolerance:
            reason = f" {why}"
            break
    if came.shape != right.shape:
        raise Wrong(f"{what}: expected the shape {tuple(right.shape)}, got {tuple(came.shape)}.{reason}")
    if not torch.isfinite(came).all():
        raise Wrong(f"{what}: got values that are not finite.{reason}")
    place = tuple(int(i) for i in torch.unravel_index((came - right).abs().argmax(), right.shape))
    raise Wrong(
        f"{what}: off by {error:.1e} of the largest value; at {list(place)} expected {right[place]:.4g}, "
        f"got {came[place]:.4g}.{reason}"
    )


def _largest_difference(came, right) -> float:
    """Largest difference of two tensors over the largest value of the second; nan counts as infinite."""
    error = ((came - right).abs().max() / right.abs().max()).item()
    return error if error == error else float("inf")


def exercise(lab: str, cell_id: str) -> Callable:
    """Make a check out of a function that takes an answer and returns the green line or raises `Wrong`.

    `lab` is a lab number such as "2.4.1" and `cell_id` the id of the exercise's cell. The answer has the name of the
    check, so the course's own version is found in `labs/solutions` under that name.
    """

    def decorate(judge: Callable[[Callable], str]) -> Callable[[Callable], Callable]:
        @functools.wraps(judge)
        def check(answer: Callable) -> Callable:
            try:
                line = judge(answer)
            except NotImplementedError:
                _say(OPEN, cell_id, "not attempted yet. The lab goes on with the course's own version.")
            except Wrong as wrong:
                _say(FAILED, cell_id, f"{wrong}\n  The lab goes on with the course's own version.")
            except Exception as error:
                _say(FAILED, cell_id, f"{_where(error)}\n  The lab goes on with the course's own version.")
            else:
                _say(PASSED, cell_id, line)
                return answer
            return getattr(notebooks.solution(lab), judge.__name__)

        check.cell_id = cell_id
        return check

    return decorate


# ---- what the student reads -------------------------------------------------------------------------------------


def _say(mark: str, cell_id: str, text: str) -> None:
    print(marked(mark, cell_id, text))


def _where(error: Exception) -> str:
    """One sentence for an exception: its type, its message and, where the answer raised it, the line of the answer."""
    said = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    # A cell of a notebook has a file of its own outside the project; a check's own frames are inside it.
    lines = [f.lineno for f in frames if not f.filename.startswith(str(files.ROOT / "shared"))]
    if not lines:
        return f"the result could not be used ({said}). Look at what the docstring says it returns."
    return f"your code raised {said} (line {lines[0]} of the cell)."


def _equal(came: object, right: object, rel: float) -> bool:
    if isinstance(right, (tuple, list)):
        return (
            isinstance(came, (tuple, list))
            and len(came) == len(right)
            and all(_equal(c, r, rel) for c, r in zip(came, right, strict=True))
        )
    if isinstance(right, (int, float)) and not isinstance(right, bool):
        try:
            return float(came) == right or abs(float(came) - right) <= rel * max(abs(right), sys.float_info.min)
        except (TypeError, ValueError):
            return False
    return came == right


def _show(value: object) -> str:
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(map(_show, value)) + ")"
    if isinstance(value, float):
        return f"{value:,.6g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else repr(value)
