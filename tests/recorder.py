"""A CUDA graph's rules, played on the CPU: operators are recorded without effect and replayed on the same tensors.

What it shares with a graph: recording has no effect that lasts, and what an operator returned is rubbish until the
first replay; a replay does the recorded operators with the recorded numbers on the recorded tensors, whatever Python
would do now; an operator that needs its result on the host cannot be recorded; nor can anything on the default stream.
What it lacks: kernels, memory that is used twice, speed.
"""

import warnings
from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# Python, or the size of a result, needs what was computed. With lift_fresh Python's numbers become a tensor of the
# host's, whose way to the GPU waits.
HOST = {
    "_local_scalar_dense",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "lift_fresh",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "_unique2",
}


def waits(function, tensors: list[torch.Tensor]) -> bool:
    """Whether this operator on a GPU would wait for the host."""
    name = function.overloadpacket.__name__
    # An index of truth values is turned into positions, however many there are.
    if name in {"index", "index_put", "index_put_"}:
        return any(t.dtype in (torch.bool, torch.uint8) for t in tensors[1:])
    # torch's GroupedBlas.cpp: bfloat16 has a kernel on capability 9 and 10, all else loops over offsets on the host.
    if name == "_grouped_mm":
        return tensors[0].dtype != torch.bfloat16
    return name in HOST or function is aten.repeat_interleave.Tensor


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storages_of(tree) -> set[int]:
    return {t.untyped_storage()._cdata for t in tensors_of(tree)}


class Leaves(TorchDispatchMode):
    """Sees the operators that do something, where inference mode shows `linear` and hides its `mm`."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            with self:
                result = function.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return self.see(function, args, kwargs)


class Strict(Leaves):
    """What `torch.cuda.set_sync_debug_mode("error")` does."""

    def see(self, function, args, kwargs):
        if waits(function, tensors_of((args, kwargs))):
            raise RuntimeError(f"called a synchronizing CUDA operation: {function}")
        return function(*args, **kwargs)


class Graph(Leaves):
    """In the place of torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.calls, self.fresh, self.saved, self.valid, self.replays = [], {}, {}, True, 0

    def capture_begin(self, pool=None, capture_error_mode="global"):
        if Cuda.current is Cuda.default:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream.")
        self.__enter__()

    def capture_end(self):
        self.__exit__(None, None, None)
        for storage, before in self.saved.values():
            storage.copy_(before)
        for storage in self.fresh.values():
            torch.empty(0, dtype=torch.uint8).set_(storage).fill_(255)  # NaN, or -1
        if not self.valid:
            raise RuntimeError("operation failed due to a previous error during capture")

    def replay(self):
        self.replays += 1
        for function, args, kwargs, results in self.calls:
            again = function(*args, **kwargs)
            for to, result in zip(tensors_of(results), tensors_of(again), strict=True):
                if to.untyped_storage()._cdata in self.fresh and to.data_ptr() != result.data_ptr():
                    to.copy_(result)

    def see(self, function, args, kwargs):
        if waits(function, tensors_of((args, kwargs))):
            self.valid = False
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        written = self._written(function, args, kwargs)
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage._cdata not in self.fresh and storage._cdata not in self.saved:
                self.saved[storage._cdata] = storage, storage.clone()
        result = function(*args, **kwargs)
        new = storages_of(result) - storages_of((args, kwargs))
        self.fresh |= {s._cdata: s for t in tensors_of(result) if (s := t.untyped_storage())._cdata in new}
        if (new or written) and torch.Tag.inplace_view not in function.tags:  # a view of what is there needs no replay
            self.calls.append((function, args, kwargs, result))
        return result

    @staticmethod
    def _written(function, args, kwargs) -> list[torch.Tensor]:
        declared = function._schema.arguments
        given = [args[i] if i < len(args) else kwargs.get(a.name) for i, a in enumerate(declared)]
        return tensors_of([g for g, a in zip(given, declared, strict=True) if a.alias_info and a.alias_info.is_write])


class Stream:
    def __init__(self, device=None):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


class Cuda:
    """The part of torch.cuda that `machine.graphs` calls."""

    default = current = Stream()
    strict = None
    graphs: list[Graph] = []  # noqa: RUF012  those that were made, for a test to look at

    @classmethod
    def install(cls, monkeypatch) -> list[Graph]:
        from shared.machine import graphs

        cls.current, cls.strict, cls.graphs = cls.default, None, []
        monkeypatch.setattr(graphs, "DEVICE", "cpu")
        for name in ("CUDAGraph", "current_stream", "get_sync_debug_mode", "set_sync_debug_mode", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(cls, name))
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        return cls.graphs

    @classmethod
    def CUDAGraph(cls) -> Graph:
        cls.graphs.append(Graph())
        return cls.graphs[-1]

    @classmethod
    def current_stream(cls, device=None) -> Stream:
        return cls.current

    @classmethod
    @contextmanager
    def stream(cls, stream: Stream):
        before, cls.current = cls.current, stream
        try:
            yield
        finally:
            cls.current = before

    @classmethod
    def get_sync_debug_mode(cls) -> int:
        return 2 if cls.strict else 0

    @classmethod
    def set_sync_debug_mode(cls, mode) -> None:
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)  # torch says it once
        if mode == "error" and not cls.strict:
            cls.strict = Strict()
            cls.strict.__enter__()
        elif mode != "error" and cls.strict:
            cls.strict.__exit__(None, None, None)
            cls.strict = None
