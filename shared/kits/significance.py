"""Many tests at once: p values corrected for their number, and how often a test errs where nothing is to be found."""

import torch
from torch import Tensor

LEVEL = 0.05  # of a test: as often it finds something where nothing is


def holm(p: Tensor) -> Tensor:
    """P values (m,) corrected for m tests, (m,): below alpha with at most probability alpha for any true null.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    order = p.argsort(stable=True)
    scaled = p[order] * torch.arange(len(p), 0, -1, device=p.device)
    adjusted = torch.empty_like(scaled)
    adjusted[order] = scaled.cummax(0).values.clamp(max=1)
    return adjusted


def p_values(null: Tensor, values: Tensor) -> Tensor:
    """P of each of many values against one null: null (R, ...), values (n, ...) -> (n, ...)."""
    at_least = (null >= values[:, None]).sum(1)
    return (1 + at_least) / (1 + len(null))


def errors_by_chance(values: int, permutations: int, level: float = LEVEL, share: float = 0.999) -> tuple[int, int]:
    """Between which two counts lie the false positives of a test that keeps its level, in so many of all cases.

    All values are compared with the same null of R permutations. Its m-th largest, m = level (1 + R), is the limit, and
    what lies beyond that is Beta(m, 1 + R - m): so the count is beta-binomial, wider than a binomial one.

    values: how many are tested. share: of the cases, such as 0.999.
    """
    from scipy.stats import betabinom

    m = max(1, int(level * (1 + permutations) + 1e-9))
    count = betabinom(values, m, 1 + permutations - m)
    return int(count.ppf((1 - share) / 2)), int(count.ppf((1 + share) / 2))
