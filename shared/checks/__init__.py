"""How an exercise is checked: one green line, or what was expected, what came and why that usually happens.

A check is a function that takes the student's answer and raises `Wrong` when it is not right. It is mostly a table:
cases on which the answer has to agree with the course's own, and mistakes that have a name:

    @exercise("2.4.1", "ex-decode-roofline")
    def decode_roofline(answer, random):
        cases = [
            case("1,000 bytes of weights at 5,000 bytes/s", 1000, 0, 0, 5000),
            case("a batch of 8, each with a cache of 250 bytes", 1000, 250, 0, 5000, batch=8),
        ]
        mistakes = {"Weights are read once per step for the whole batch.": lambda w, kv, s, rate, batch=1: ...}
        agree(answer, cases, mistakes)
        return "weights once per step, caches and states once per sequence."

The decorator `exercise` turns it into what a lab calls: it prints the verdict and hands back the function that the rest
of the lab uses, the student's where it is right and the course's own (from `labs/solutions`) where it is not, so a lab
never dead-ends.
"""

import functools
import inspect
import random
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import NamedTuple

from shared import notebooks
from shared.checks.compare import CLOSE, Wrong, as_tensor, difference, expect, shown, unpacked
from shared.checks.watch import Answer, as_tensors, copied, line_of, raised_by_itself
from shared.notebooks import progress
from shared.notebooks.notice import FAILED, GOES_ON, NOT_ATTEMPTED, OPEN, PASSED, marked

__all__ = [
    "Wrong",
    "agree",
    "as_tensor",
    "case",
    "copied",
    "difference",
    "exercise",
    "expect",
    "instead",
    "shown",
    "unpacked",
]

BELOW = f"\n  {GOES_ON}"
NOT_RUN = (
    "your answer is not here: what came is the course's own version, which this check has handed on before. Run the "
    "exercise's cell above, then this one." + BELOW
)
LONGEST = 2000  # characters of what an answer prints that are shown


# ---- the table ---------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What a function is called with, and what that is, in words."""

    what: str
    args: tuple
    kwargs: dict

    def of(self, function: Callable):
        """What the function gives for copies of the arguments, so that none can spoil them for another."""
        return function(*copied(self.args), **copied(self.kwargs))


def case(what: str, *args, **kwargs) -> Case:
    return Case(what, args, kwargs)


def instead(function: Callable, **others) -> Callable:
    """The function with other arguments than it is given: `instead(own, batch=1)` is one that ignores the batch.

    An argument may be a function of all that are given: `instead(own, tokens=lambda given: given.tokens**2)`.
    """

    def mistaken(*args, **kwargs):
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        given = SimpleNamespace(**bound.arguments)
        changed = {name: value(given) if callable(value) else value for name, value in others.items()}
        return function(**bound.arguments | changed)

    return mistaken


def agree(
    answer: Answer,
    cases: Iterable[Case],
    mistakes: Mapping[str, Callable] | None = None,
    rel: float = CLOSE,
    gradients: bool = False,
) -> None:
    """Raise `Wrong` at the first case on which the answer does not give what the course's own version gives.

    Order the cases from the smallest. mistakes: explanation -> a function of the same arguments that makes the mistake.
    rel: see `expect`. gradients: those of every floating tensor among the arguments must agree too.
    """
    passed: list[tuple[Case, object]] = []
    given: list[object] = []

    def value(mistake: Callable, one: Case):
        """What a mistake leads to; only one that agrees wherever the answer did can be the answer's."""
        if any(difference(before.of(mistake), right, rel) for before, right in passed):
            raise LookupError
        return one.of(mistake)

    for one in cases:
        right = one.of(answer.own)
        wrong = {why: functools.partial(value, mistake, one) for why, mistake in (mistakes or {}).items()}
        came = one.of(answer)
        expect(came, right, one.what, wrong, rel)
        passed.append((one, right))
        given.append(came)
        if gradients:
            came, wanted = _gradients(answer, one), _gradients(answer.own, one)
            expect(came, wanted, f"gradients of the arguments, for {one.what}", rel=rel)
    for (one, right), came in zip(passed, given, strict=True):
        if difference(came, right, rel):
            raise Wrong(f"{one.what}: the result was right until a later call changed it: return a new one each time.")


def _gradients(function: Callable, one: Case) -> dict[str, object]:
    """What each floating tensor among the arguments gets from a weighted sum of the result."""
    import torch

    args, kwargs = copied(one.args), copied(one.kwargs)
    places = dict(enumerate(args)) | kwargs
    leaves = {f"argument {n}": t for n, t in places.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    for leaf in leaves.values():
        leaf.requires_grad_()
    result = function(*args, **kwargs)
    parts = [as_tensor(p) for p in (result if isinstance(result, (tuple, list)) else [result])]
    parts = [p for p in parts if p is not None and p.requires_grad]
    if not parts:
        return dict.fromkeys(leaves)
    weighted = [(p * torch.linspace(1, 2, p.numel()).to(p).view(p.shape)).sum() for p in parts]
    found = torch.autograd.grad(sum(weighted), list(leaves.values()), allow_unused=True)
    return dict(zip(leaves, found, strict=True))


# ---- the verdict -------------------------------------------------------------------------------------------------


class Verdict(NamedTuple):
    mark: str  # of shared.notebooks.notice
    text: str
    printed: str  # what the answer itself printed
    other_types: bool = False  # it gave something else than tensors of its arguments' dtype


def exercise(lab: str, cell_id: str, seconds: float = 0.7, changes: tuple[str, ...] = (), tensors: int = 0) -> Callable:
    """Make a check out of a function that takes an answer and returns the green line or raises `Wrong`.

    That function is called with the answer, as `watch.Answer` watches it (`answer.own` is the course's), and with a
    random.Random.

    lab: a number such as "2.4.1". cell_id: of the exercise's cell. seconds: that one call of the answer may take.
    changes: arguments that the answer is meant to change. tensors: how many the answer gives; where a right one gives
    arrays, lists or another dtype, the lab goes on with `as_tensors` of it, so that no later cell stops at them. The
    answer has the name of the check, so the course's own version is found in `labs/solutions` under that name.

    The check has `judge(function, seed)`, which prints and keeps nothing and returns a `Verdict`.
    """

    def decorate(table: Callable) -> Callable[[Callable], Callable]:
        name = table.__name__

        def judge(function: Callable, seed: int = 0) -> Verdict:
            own = getattr(notebooks.solution(lab), name)
            if function is own:
                return Verdict(OPEN, NOT_RUN, "")
            answer = None
            try:
                answer = Answer(function, own, seconds, changes, tensors)
                mark, text = PASSED, table(answer, random.Random(seed))
            except Wrong as wrong:
                mark, text = FAILED, f"{wrong}{BELOW}"
            except Exception as error:
                if answer is None or error is not answer.raised:
                    said = f"the result could not be used ({type(error).__name__}: {error})"
                    mark, text = FAILED, f"{said}. Look at what the docstring says it returns.{BELOW}"
                elif type(error) is NotImplementedError and raised_by_itself(error, function):
                    mark, text = OPEN, NOT_ATTEMPTED
                else:
                    line = line_of(error, function)
                    where = f" (line {line} of the cell)" if line else ""
                    mark, text = FAILED, f"your code raised {type(error).__name__}: {error}{where}.{BELOW}"
            return Verdict(mark, text, *((answer.printed, answer.other_types) if answer else ("",)))

        @functools.wraps(table)
        def check(answer: Callable) -> Callable:
            verdict = judge(answer)
            if verdict.text != NOT_RUN:
                progress.note(lab, cell_id, answer if verdict.mark == PASSED else None)
            print(f"{marked(verdict.mark, cell_id, verdict.text)}\n  {progress.said(lab)}.")
            if verdict.printed:
                print(f"  Your code printed:\n{_quoted(verdict.printed)}")
            if verdict.mark != PASSED:
                return getattr(notebooks.solution(lab), name)
            return as_tensors(answer, tensors) if verdict.other_types else answer

        check.cell_id, check.judge, check.lab = cell_id, judge, lab
        return check

    return decorate


def _quoted(text: str) -> str:
    """What an answer printed, each line marked as its own, so that none can pass for a verdict."""
    cut = f"\n(and {len(text) - LONGEST:,} more characters)" if len(text) > LONGEST else ""
    return "\n".join(f"  │ {line}" for line in (text[:LONGEST] + cut).splitlines())
