"""What a computation asks of a machine, counted and so the same on every machine however busy: calls, and bytes."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counted(TorchDispatchMode):
    """Counts the operations called inside the with.

    Attributes:
        calls: how many.
        bytes: what they read and write: all tensors given and returned, except by views, which move nothing.
    """

    def __init__(self):
        super().__init__()
        self.calls = self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.calls += 1
        if not function.is_view:
            tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, torch.Tensor)]
            # An expanded tensor is larger than what it reads.
            self.bytes += sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)
        return out


def counted(work) -> Counted:
    """What a call of `work` takes."""
    with Counted() as count:
        work()
    return count
