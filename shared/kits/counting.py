"""What a forward asks of a machine, counted on shapes alone: operations, FLOPs, bytes moved, and the most that lives.

A model is built on torch's meta device, where tensors have shapes and no bytes, and run there. Three short lengths and
two or three shallow models are enough: every count but the peak is a polynomial of degree 2 at most in the length
(exactly, at multiples of the scan's chunk) and grows by the same with every layer of a kind, so a long context of a
deep model follows from them. A batch follows from two small ones.
"""

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cache, partial
from importlib import import_module
from operator import mul
from sys import maxsize
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from shared import models, scan
from shared.machine import kernels
from shared.models.cards import published_config
from shared.models.running import STATE_ONLY
from shared.models.sizes import size

LENGTHS = (128, 192, 256)  # multiples of the scan's chunk, of 64 tokens, and more than one of it
PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "_grouped_mm", "scaled_dot_product_attention"}
LOOKUPS = {"embedding", "index", "index_select", "gather"}  # of a table they read what they return
FIRST = {"addmm": 1, "baddbmm": 1}  # the position of a product's first matrix, where it is not 0
IN_PLACE = {"addcmul_", "copy_", "mul_"}  # they return what they were given, and torch takes long to work out its shape


@dataclass(frozen=True)
class Work:
    """What a piece of code asks for. `+` is one piece after the other, `*` one several times.

    Attributes:
        operations: calls into torch, each compiled kernel of another package one.
        flops: of matrix products and attention, a multiplication and an addition counted as two.
        attention_flops: the part of `flops` that is attention.
        product_bytes, other_bytes: read and written by these, and by everything else.
        expert_bytes: the part of `product_bytes` that is weights of routed experts, all of them.
        peak_bytes: the most that lives at once beside the weights.
    """

    operations: int = 0
    flops: int = 0
    attention_flops: int = 0
    product_bytes: int = 0
    other_bytes: int = 0
    expert_bytes: int = 0
    peak_bytes: int = 0

    def __add__(self, other: "Work") -> "Work":
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return Work(**sums | {"peak_bytes": max(self.peak_bytes, other.peak_bytes)})

    def __mul__(self, times: float) -> "Work":
        return Work(**{f.name: getattr(self, f.name) * times for f in fields(self)} | {"peak_bytes": self.peak_bytes})


class Shapes(TorchDispatchMode):
    """Counts what is done inside the with, on the meta device; in inference mode calls arrive whole, not in parts.

    Two operations cannot run there as on a real device and only their result is made: attention, which would lay out
    all scores, and grouped products of float32. A question about values ("is nothing padded?") is answered with yes.
    """

    def __init__(self):
        super().__init__()
        self.alive, self.live = set(), 0
        self._start()

    def _start(self) -> None:
        self.operations = self.flops = self.attention_flops = 0
        self.product_bytes = self.other_bytes = self.expert_bytes = 0
        self.peak = self.live

    def taken(self) -> Work:
        """The work since the last call of this; what lives stays."""
        counted = {f.name: getattr(self, f.name) for f in fields(Work) if f.name != "peak_bytes"}
        work = Work(**counted, peak_bytes=self.peak)
        self._start()
        return work

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, function.overloadpacket.__name__
        if name == "einsum":  # the products and copies that it comes down to
            with self:
                return function.decompose(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            query, key, value = args[:3]
            out = query.new_empty(*query.shape[:-1], value.shape[-1])
            new, seen = query.shape[-2], key.shape[-2]
            causal = len(args) > 5 and args[5]
            pairs = new * (new + 1) // 2 if causal else new * seen
            flops = 2 * query.shape[:-2].numel() * pairs * (query.shape[-1] + value.shape[-1])
            self.flops += flops
            self.attention_flops += flops
        elif name == "_grouped_mm":
            out = args[0].new_empty(args[0].shape[0], args[1].shape[-1])
            self.expert_bytes += args[1].nbytes
        elif name == "_local_scalar_dense":
            out = True
        elif name in IN_PLACE:
            out = args[0]
        else:
            out = function(*args, **kwargs)
        self.operations += 1
        given, made = list(tensors(args)) + list(tensors(kwargs.values())), list(tensors((out,)))
        self._born(made, given)
        if name in PRODUCTS:
            self.product_bytes += moved(given) + moved(made)
            if name != "scaled_dot_product_attention":  # which has been counted
                self.flops += 2 * out.numel() * args[FIRST.get(name, 0)].shape[-1]
        elif not function.is_view:
            self.other_bytes += moved(made) + moved(made if name in LOOKUPS else given)
        return out

    def compiled(self, given: tuple, *made: tuple) -> tuple[torch.Tensor, ...]:
        """A kernel that is no operation of torch: it reads tensors and makes some of (shape, dtype).

        Its backward reads the same and makes gradients of them.
        """
        return _Compiled.apply(self, made, *(x for x in given if x is not None))

    def call(self, given: tuple, made: tuple) -> tuple[torch.Tensor, ...]:
        """One call that reads and makes so much."""
        out = tuple(given[0].new_empty(shape, dtype=dtype) for shape, dtype in made)
        self.operations += 1 - len(out)
        self.other_bytes += moved(given)
        return out

    def _born(self, made: list[torch.Tensor], given: list[torch.Tensor]) -> None:
        before = {x.untyped_storage()._cdata for x in given}
        for tensor in made:
            storage = tensor.untyped_storage()
            key, held = storage._cdata, storage.nbytes()
            if key not in before and key not in self.alive:
                self.alive.add(key)
                self.live += held
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._died, key, held)

    def _died(self, key: int, held: int) -> None:
        self.alive.discard(key)
        self.live -= held


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, shapes: Shapes, made: tuple, *given):
        ctx.shapes = shapes
        ctx.save_for_backward(*given)
        return shapes.call(given, made)

    @staticmethod
    def backward(ctx, *gradients):
        given = ctx.saved_tensors
        made = [(x.shape, x.dtype) for x in given]
        return (None, None, *ctx.shapes.call((*given, *(x for x in gradients if x is not None)), made))


def tensors(values) -> Iterator[torch.Tensor]:
    """The tensors among an operation's arguments or results, also in lists."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from tensors(value)


def moved(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of these tensors; an expanded one is larger than what it reads."""
    return sum(min(x.nbytes, x.untyped_storage().nbytes()) for x in tensors)


# ---- which code runs --------------------------------------------------------------------------------------------


@contextmanager
def running(kind: str, path: str, gpu: bool, shapes: Shapes):
    """Let models of type `kind` run a path of the scan, in the names of `models.path`, and tile it as the device would.

    "kernel" is counted on functions of the same shapes that read and write once, as the fused kernels do.
    """
    with ExitStack() as restored:
        if gpu:
            restored.enter_context(patch.object(scan, "LANES", maxsize))
        if kind in kernels.FAMILIES and path == "course":
            restored.enter_context(scan.in_transformers())
        if kind in kernels.FAMILIES and path == "kernel":
            module = import_module(f"transformers.models.{kind}.modeling_{kind}")
            for name, stand_in in _kernels(shapes).items():
                restored.enter_context(patch.object(module, name, stand_in))
        yield


def _kernels(shapes: Shapes) -> dict:
    def same(x, *given, **options):
        return shapes.compiled((x, *given), (x.shape, x.dtype))[0]

    def selective_scan(u, delta, A, *given, z=None, **options):
        state = (*u.shape[:2], A.shape[1])
        made = shapes.compiled((u, delta, A, *given, z), (u.shape, u.dtype), (state, torch.float32))
        return made if options.get("return_last_state") else made[0]

    def state_update(state, u, *given, z=None, **options):
        return shapes.compiled((u, state, state, *given, z), (u.shape, u.dtype))[0]

    return {
        "causal_conv1d_fn": same,
        "causal_conv1d_update": same,
        "mamba_selective_scan": selective_scan,
        "mamba_selective_state_update": state_update,
    }


# ---- a model ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counts:
    """The work of a prefill of `tokens` tokens and of the decode step after it, and the bytes of the cache then."""

    prefill: Work
    decode: Work
    cache_bytes: int


def count(name: str, tokens: int, batch: int = 1, dtype=torch.bfloat16, path: str = "course", gpu: bool = False):
    """Counts of a model of the course over a prompt (batch, tokens).

    Args:
        path: of the scan, as `models.path` names it; models without one do not mind. Mamba-2 is counted as the
            library's own code runs it, whatever kernels there are.
        gpu: as on a GPU, where the course's scan takes all channels at once and a step's experts are gathered.

    Returns: Counts. Of routed experts as many are read as tokens are expected to hit if the router has no favourites.
    """
    config, parts = published_config(name), size(name, dtype)
    one = partial(_generated, name, dtype=dtype, path=_path(name, path), gpu=gpu)
    prefill, decode = _scaled(one, config, tokens, batch)
    return Counts(
        _read_experts(prefill, hit(config, batch * tokens)),
        _read_experts(decode, hit(config, batch)),
        batch * parts.cache_bytes(tokens),
    )


def training(name: str, tokens: int, batch: int = 1, dtype=torch.bfloat16, path: str = "course", gpu: bool = False):
    """The Work of a step of fine-tuning on (batch, tokens), forward and backward, where adapters train.

    They are so small that they are left out: weights are frozen, gradients pass through all layers, and the peak is
    activations. The optimizer is not in it.
    """
    one = partial(_trained, name, dtype=dtype, path=_path(name, path), gpu=gpu)
    (work,) = _scaled(one, published_config(name), tokens, batch)
    return work


def _scaled(one, config, tokens: int, batch: int) -> tuple[Work, ...]:
    """What one(layers, length, batch) counts, at any length, with all of the model's layers, and at any batch."""
    chunk = getattr(config, "chunk_size", None)  # Mamba-2 fills its last chunk up: between two of them nothing grows
    lengths = tuple(n * chunk // 64 for n in LENGTHS) if chunk else LENGTHS
    if config.model_type in STATE_ONLY and not chunk:  # nothing is square: no attention, and no chunk after each other
        lengths = lengths[:2]
    at_batch, shallow = {}, layouts(config)
    for few in (2, 3) if batch > 3 else (batch,):  # of one sequence some layouts are others
        counted = []
        for layers in shallow:
            phases = zip(*[one(layers, length, few) for length in lengths], strict=True)
            counted.append([through(dict(zip(lengths, works, strict=True)), tokens) for works in phases])
        at_batch[few] = [_sum(works, shallow.values()) for works in zip(*counted, strict=True)]
    return tuple(
        through(dict(zip(at_batch, works, strict=True)), batch) for works in zip(*at_batch.values(), strict=True)
    )


def _sum(works: Iterable[Work], times: Iterable[int]) -> Work:
    """Each work so many times, the peak too: with every layer of a kind it grows by the same."""
    return Work(**{f.name: sum(map(mul, (getattr(work, f.name) for work in works), times)) for f in fields(Work)})


def _path(name: str, path: str) -> str:
    return path if published_config(name).model_type in kernels.FAMILIES else "no scan"


def hit(config, tokens: int) -> float:
    """The share of a layer's routed experts that `tokens` tokens are expected to use."""
    return 1 - (1 - config.num_experts_per_tok / experts(config)) ** tokens if experts(config) else 1.0


def experts(config) -> int:
    """The routed experts of a layer, 0 where there are none."""
    names = ("num_local_experts", "n_routed_experts", "num_experts")
    return next((number for name in names if (number := getattr(config, name, None))), 0)


Layers = int | tuple[str, ...]  # their number, or the kind of each


def layouts(config) -> dict[Layers, int]:
    """Shallow models of the same kind, and how many times to count each, so that the sum is the model.

    Two that differ by one period of its layers. Where the config names each layer, one that has each kind and ends as
    the model does, and for each kind one with another layer of it before the others.
    """
    if kinds := vars(config).get("layers_block_type"):
        few = (*dict.fromkeys(kinds), kinds[-1])  # at the last layer most lives
        more: dict[Layers, int] = {(kind, *few): kinds.count(kind) - few.count(kind) for kind in dict.fromkeys(kinds)}
        return {few: 1 - sum(more.values())} | more
    period = math.lcm(getattr(config, "attn_layer_period", 1), getattr(config, "expert_layer_period", 1))
    first = max(2, period) + getattr(config, "first_k_dense_replace", 0)
    periods, rest = divmod(config.num_hidden_layers - first, period)
    if periods < 2 or rest:
        return {config.num_hidden_layers: 1}
    return {first: 1 - periods, first + period: periods}


@cache
def _generated(name: str, layers: Layers, length: int, batch: int, dtype, path: str, gpu: bool) -> tuple[Work, Work]:
    model = _model(name, layers, dtype)
    ids = torch.ones((batch, length), dtype=torch.long, device="meta")
    shapes = Shapes()
    with torch.inference_mode(), running(model.config.model_type, path, gpu, shapes), shapes:
        _, held = models.forward(model, ids)
        prefill = shapes.taken()
        if gpu:
            with model._optimize_model_for_decode():
                models.forward(model, ids[:, :1], held)
        else:
            models.forward(model, ids[:, :1], held)
        return prefill, shapes.taken()


@cache
def _trained(name: str, layers: Layers, length: int, batch: int, dtype, path: str, gpu: bool) -> tuple[Work]:
    model = _model.__wrapped__(name, layers, dtype).requires_grad_(False)
    model.enable_input_require_grads()
    ids = torch.ones((batch, length), dtype=torch.long, device="meta")
    shapes = Shapes()
    with running(model.config.model_type, path, gpu, shapes), shapes:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return (shapes.taken(),)


@cache
def _model(name: str, layers: Layers, dtype):
    from transformers import AutoModelForCausalLM

    kernels.by_device()
    config = published_config(name)
    if isinstance(layers, int):
        config.num_hidden_layers = layers
    else:
        config.layers_block_type = list(layers)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()


def through(points: dict[int, Work], x: int) -> Work:
    """The polynomial through the work at some lengths or batches, at another; the peak along the last two.

    Which moment has the peak can change with the length, so three peaks need not lie on one polynomial.
    """
    values = {}
    for field in fields(Work):
        known = {here: getattr(work, field.name) for here, work in points.items()}
        if field.name == "peak_bytes":
            known = dict(sorted(known.items())[-2:])
        values[field.name] = polynomial(known, x)
    return Work(**values)


def polynomial(points: dict[int, int], x: int) -> int:
    """The value at x of the polynomial through the points x -> y, which is a whole number there."""
    total = Fraction(0)
    for here, value in points.items():
        weight = Fraction(value)
        for other in points:
            if other != here:
                weight *= Fraction(x - other, here - other)
        total += weight
    return round(total)


def _read_experts(work: Work, share: float) -> Work:
    left_out = round(work.expert_bytes * (1 - share))
    changed = {"product_bytes": work.product_bytes - left_out, "expert_bytes": work.expert_bytes - left_out}
    return Work(**{f.name: getattr(work, f.name) for f in fields(Work)} | changed)
