"""Many tests at once: p values corrected for their number."""

import torch
from torch import Tensor


def holm(p: Tensor) -> Tensor:
    """P values (m,) corrected for m tests, (m,): below alpha with at most probability alpha for any true null.

    Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    order = p.argsort(stable=True)
    scaled = p[order] * torch.arange(len(p), 0, -1, device=p.device)
    adjusted = torch.empty_like(scaled)
    adjusted[order] = scaled.cummax(0).values.clamp(max=1)
    return adjusted
