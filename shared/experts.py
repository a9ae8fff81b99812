"""Which experts a Mixture-of-Experts model of transformers really dispatches to, token by token.

    with experts.capture(model) as trace:
        model.generate(**batch, max_new_tokens=20)
    trace.indices[layer]  # (B, T, k)
    trace.frame()         # one row per token, layer and rank

transformers fuses the experts of a layer into one module and calls it as `experts(hidden, indices, weights)`. A hook in
front of that call sees what is dispatched, whatever the router did before it: a selection bias, groups, a correction.
Hooks on single experts see nothing, and the top k of the router's logits are not the choice of a router with a bias.

Shapes: B sequences, T tokens of the longest one, E experts of a layer, k experts per token.
"""

import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
from torch import nn

from shared import data
from shared.errors import BadInput, CourseError, one_block

COLUMNS = ("sequence", "position", "token", "layer", "rank", "expert", "weight")
NOTHING = "Nothing was traced: call the model that capture was given, itself, inside the with."


@one_block
def capture(model: nn.Module, counts_only: bool = False) -> Iterator["Trace"]:
    """Trace every forward of `model` inside the with; the hooks are gone after it, whatever ends it.

    Until then `Cache.crop` of transformers is watched too, for what assisted decoding takes back.

    Args:
        model: a model of transformers with experts. Call it or its `generate`: a call of a part is not seen.
        counts_only: keep one number per layer and expert instead of every choice, so that a book can be traced.

    Raises: BadInput for a dense model, and for one whose blocks do not call `experts(hidden, indices, weights)`.
    """
    watched = experts_modules(model)
    trace = Trace(_inner(model), {layer: _experts(module) for layer, module in watched.items()}, counts_only)
    whole = {model, _inner(model)}
    with ExitStack() as hooks:
        for part in whole:
            hooks.callback(part.register_forward_pre_hook(_Hook(trace._begin), with_kwargs=True).remove)
        for layer, module in watched.items():
            hooks.callback(module.register_forward_pre_hook(_Hook(trace._dispatch(layer))).remove)
        # It is not called when the forward raises: a half-finished call stays out of the trace.
        for part in whole:
            hooks.callback(part.register_forward_hook(_Hook(trace._end)).remove)
        hooks.enter_context(_crops_seen_by(trace))
        yield trace


_live: list["Trace"] = []  # of the captures that are open now, which need not end in the order of their begin
_own: list[Callable] = []  # transformers' own Cache.crop, while one is open


@contextmanager
def _crops_seen_by(trace: "Trace") -> Iterator[None]:
    """Inside the with, `trace` hears of each crop of a cache. transformers' own `Cache.crop` is back after the last."""
    from transformers import Cache

    if not _live:
        _own.append(Cache.crop)
        Cache.crop = _crop
    _live.append(trace)
    try:
        yield
    finally:
        _live.remove(trace)
        if not _live:
            Cache.crop = _own.pop()


def _crop(cache, *args, **kwargs) -> None:
    before = int(cache.get_seq_length())
    _own[0](cache, *args, **kwargs)
    for trace in list(_live):
        trace._cropped(cache, before)


def experts_modules(model: nn.Module) -> dict[int, nn.Module]:
    """Layer -> the module that its block calls as `experts(hidden, indices, weights)`. Raises as `capture` does."""
    data.check_model(model)
    found = {}
    for name, module in model.named_modules():
        # JetMoE and Llama 4 have a module of this name, which is called with the hidden states alone.
        if name.split(".")[-1] == "experts" and len(inspect.signature(module.forward).parameters) >= 3:
            layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
            if layer in found:
                raise BadInput(f"Two modules named experts are in layer {layer}: capture a part of the model instead.")
            found[layer] = module
    if found:
        return found
    kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
    config = model.config.get_text_config().to_dict() if hasattr(model, "config") else {}
    if named := [f"{name}={n}" for name, n in config.items() if name.endswith(("_experts", "_experts_per_tok")) and n]:
        raise BadInput(
            f"The config of this {kind} model names experts ({', '.join(named)}), but no module is called as experts("
            "hidden, indices, weights), which capture watches: trace another model, or hook its router yourself."
        )
    raise BadInput(f"This {kind} model is dense: it has no experts to trace.")


class _Hook:
    """A hook of the traced model alone: what stands in a copy of it, or in a pickle, does nothing."""

    def __init__(self, call: Callable | None = None):
        self.call = call

    def __call__(self, *args):
        return self.call(*args) if self.call else None

    def __reduce__(self):  # of copy and pickle
        return _Hook, ()


@dataclass
class _Call:
    """One forward: tokens and real (B, t), and layer -> indices and weights (B * t, k) as they were dispatched."""

    run: list["_Call"]  # the calls, of which this is one, that made the same sequences with one cache
    start: torch.Tensor  # (B,) tokens of each sequence that the cache held before the call
    column: int  # of the cache, padding included, at which the call begins
    cache: object
    tokens: torch.Tensor
    real: torch.Tensor | None  # None: no padding
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


class Trace:
    """What `capture` saw. A call with the cache of an earlier one continues its sequences; any other begins new ones.

    So cached generation of n tokens gives B sequences of prompt + n - 1 tokens (the last token is never fed back), and
    generation without a cache gives B new sequences at each step, because it dispatches them all again. With beams
    the sequences are the model's rows: after a beam is dropped, a row goes on with another beam's tokens.
    What a cropped cache has lost, such as drafts that assisted or prompt-lookup decoding refused, is left out; so is
    what `assistant_early_exit` drafts with the first layers alone.
    Gradient checkpointing runs layers again during backward, outside of any forward: that is not counted.
    """

    def __init__(self, model: nn.Module, experts: dict[int, int], counts_only: bool):
        self._names = list(inspect.signature(model.forward).parameters)
        self._depth = _layers(model)
        self._experts = experts  # layer -> E
        self._counts: dict[int, torch.Tensor] | None = {} if counts_only else None
        self._runs: list[list[_Call]] = []
        self._by_cache = WeakKeyDictionary()  # does not keep a model's cache alive
        self._now = threading.local()  # its call is the forward that this thread is in
        self._joined: dict | None = None

    # ---- what you read ----------------------------------------------------------------------------------------------

    @property
    def indices(self) -> dict[int, torch.Tensor]:
        """Layer -> experts (B, T, k) int64, the one with the largest weight first; -1 at padding.

        Also -1 where no expert works: transformers writes a skip as index E, and Zaya's as expert 0 with weight 0.
        Sequences shorter than the longest are padded at the right.
        """
        return self._join()["indices"]

    @property
    def weights(self) -> dict[int, torch.Tensor]:
        """Layer -> weights (B, T, k) float32 as dispatched, in the order of `indices`; 0 where those are -1."""
        return self._join()["weights"]

    @property
    def tokens(self) -> torch.Tensor:
        """(B, T) int64 token ids; -1 at padding, and everywhere if the model was given embeddings."""
        return self._join()["tokens"]

    @property
    def positions(self) -> torch.Tensor:
        """(B, T) int64 position in the sequence, padding not counted; -1 at padding."""
        return self._join()["positions"]

    @property
    def counts(self) -> dict[int, torch.Tensor]:
        """Layer -> how often each expert was chosen, (E,) int64, padding and skips not counted."""
        if self._counts is None:
            chosen = self._join()["indices"]
            return {n: torch.bincount(i[i >= 0], minlength=self._experts[n]) for n, i in chosen.items()}
        if not self._counts:
            raise CourseError(NOTHING)
        return dict(self._counts)

    def frame(self):
        """A tidy DataFrame: sequence, position, token, layer, rank (0 has the largest weight), expert, weight."""
        import pandas as pd

        frames = []
        for layer, indices in self.indices.items():
            sequence, column, rank = where = (indices >= 0).nonzero(as_tuple=True)
            position, token = self.positions[sequence, column], self.tokens[sequence, column]
            columns = [sequence, position, token, torch.full_like(rank, layer), rank, indices[where]]
            frame = pd.DataFrame(torch.stack(columns, dim=1).numpy(), columns=COLUMNS[:-1])
            frames.append(frame.assign(weight=self.weights[layer][where].numpy()))
        return pd.concat(frames).sort_values(list(COLUMNS[:5]), ignore_index=True)

    # ---- what the hooks write ---------------------------------------------------------------------------------------

    @property
    def _call(self) -> _Call | None:
        return getattr(self._now, "call", None)

    @_call.setter
    def _call(self, call: _Call | None) -> None:
        self._now.call = call

    def _begin(self, model, args, kwargs) -> None:
        self._call = None
        if _layers(model) < self._depth:
            return  # an early exit: the drafts of assisted decoding, which the whole model then judges
        given = dict(zip(self._names, args, strict=False)) | kwargs
        tokens, embeddings = given.get("input_ids"), given.get("inputs_embeds")
        if tokens is None and torch.is_tensor(embeddings):
            tokens = embeddings.new_full(embeddings.shape[:2], -1, dtype=torch.int64)
        if not torch.is_tensor(tokens):
            return  # the model itself says what it needs
        cache, mask = given.get("past_key_values"), given.get("attention_mask")
        seen = int(cache.get_seq_length()) if cache is not None else 0
        run = self._by_cache.get(cache, []) if seen else []
        run = run if run and len(run[0].tokens) == len(tokens) else []
        if run:
            self._cut(run, seen)
        masked = seen and getattr(mask, "ndim", 0) == 2
        start = mask[:, :seen].sum(1) if masked else tokens.new_full(tokens.shape[:1], seen)
        self._call = _Call(run, start, seen, cache, tokens.clone(), _real(mask, tokens, seen))

    def _cropped(self, cache, before: int) -> None:
        """A cache of `before` columns holds fewer now."""
        if run := self._by_cache.get(cache):
            end = run[-1].column + run[-1].tokens.shape[1]
            self._cut(run, end - before + int(cache.get_seq_length()))

    def _cut(self, run: list[_Call], seen: int) -> None:
        """Forget the tokens of a run beyond the `seen` columns that its cache still holds: drafts that were refused."""
        while run and run[-1].column + run[-1].tokens.shape[1] > seen:
            call = run[-1]
            kept, self._joined = seen - call.column, None
            if self._counts is not None:
                raise CourseError("The cache was cropped, and counts cannot be taken back: leave counts_only out.")
            if kept <= 0:
                run.pop()
                continue
            rows = torch.ones_like(call.tokens, dtype=torch.bool)
            rows[:, kept:] = False
            call.layers = {n: (i[rows.flatten()], w[rows.flatten()]) for n, (i, w) in call.layers.items()}
            call.tokens = call.tokens[:, :kept]
            call.real = None if call.real is None else call.real[:, :kept]

    def _dispatch(self, layer: int):
        def hook(experts, args):
            if (call := self._call) is None:
                return
            _, indices, weights = args
            indices = indices.reshape(-1, indices.shape[-1])
            if len(indices) != call.tokens.numel():
                rows = f"{len(indices)} rows for {len(call.tokens)} x {call.tokens.shape[1]} tokens"
                raise CourseError(f"Layer {layer} dispatches {rows}: capture the language model alone.")
            # A copy: some experts work in place on what they are given.
            call.layers[layer] = indices.to(torch.int32, copy=True), weights.detach().reshape(indices.shape).clone()

        return hook

    def _end(self, model, args, output) -> None:
        call, self._call, self._joined = self._call, None, None
        if call is None:  # no tokens, or seen already: an adapter's model calls the model that it wraps
            return
        if not call.layers:
            raise CourseError("The model ran and none of its experts did: compile it inside the with, or not at all.")
        # Moved once per call, not per layer: each move waits for a GPU.
        call.layers = {layer: (i.cpu(), w.cpu()) for layer, (i, w) in call.layers.items()}
        call.tokens, call.start = call.tokens.cpu(), call.start.cpu()
        cache = getattr(output, "past_key_values", None) if call.cache is None else call.cache
        call.cache = None
        if self._counts is not None:
            padding = None if call.real is None else ~call.real.cpu().flatten()[:, None]
            for layer, (indices, weights) in call.layers.items():
                E, none = self._experts[layer], weights == 0 if padding is None else (weights == 0) | padding
                counts = indices.masked_fill(none, E).flatten().bincount(minlength=E)[:E]
                self._counts[layer] = self._counts.get(layer, 0) + counts
            call.layers, call.real = {}, None
            call.run.append(call)
            if cache is not None:
                self._by_cache[cache] = call.run
            return
        call.real = torch.ones_like(call.tokens, dtype=torch.bool) if call.real is None else call.real.cpu()
        if not call.run:
            self._runs.append(call.run)
        call.run.append(call)
        if cache is not None:
            self._by_cache[cache] = call.run

    def _join(self) -> dict:
        if self._counts is not None:
            raise CourseError("This trace keeps counts only: read trace.counts, or capture without counts_only.")
        runs = [run for run in self._runs if run]  # a cache can be cropped to nothing
        if not runs:
            raise CourseError(NOTHING)
        if self._joined is not None:
            return self._joined
        real = _grid(runs, lambda call: call.real.flatten(), False)
        before = torch.cat([run[0].start for run in runs])
        tokens = _grid(runs, lambda call: call.tokens.flatten(), -1).masked_fill(~real, -1)
        positions = (real.long().cumsum(1) - 1 + before[:, None]).masked_fill(~real, -1)
        joined = {"tokens": tokens, "positions": positions, "indices": {}, "weights": {}}
        for layer in sorted(runs[0][0].layers):
            weights = _grid(runs, lambda call, n=layer: call.layers[n][1], 0).float()
            indices = _grid(runs, lambda call, n=layer: call.layers[n][0], -1).long()
            # The column order is the router's; its topk may be unsorted, or sorted by something else.
            weights, order = weights.sort(dim=-1, descending=True, stable=True)
            indices = indices.gather(-1, order)
            none = ~real[..., None] | (weights == 0) | (indices >= self._experts[layer])
            joined["indices"][layer] = indices.masked_fill(none, -1)
            joined["weights"][layer] = weights.masked_fill(none, 0)
        self._joined = joined
        return joined


def _grid(runs: list[list[_Call]], get, value) -> torch.Tensor:
    """What `get` takes out of each call, in rows of its tokens, as one tensor (all B, longest T, ...), else `value`."""
    whole = [torch.cat([get(c).unflatten(0, c.tokens.shape) for c in run], dim=1) for run in runs]
    return nn.utils.rnn.pad_sequence([row for rows in whole for row in rows], batch_first=True, padding_value=value)


def _inner(model: nn.Module) -> nn.Module:
    """The model of transformers in a wrapper such as peft's, whose `generate` calls it past the wrapper."""
    from transformers import PreTrainedModel

    return next((part for part in model.modules() if isinstance(part, PreTrainedModel)), model)


def _layers(model: nn.Module) -> int:
    """How many layers a forward runs now: `assistant_early_exit` lowers it in the config while it drafts."""
    config = getattr(model, "config", None)
    return config.get_text_config().num_hidden_layers if config is not None else 0


def _experts(module: nn.Module) -> int:
    # LongCat counts its identity experts in the shape alone.
    return getattr(module, "num_experts", None) or max(p.shape[0] for p in module.parameters() if p.ndim == 3)


def _real(mask, tokens: torch.Tensor, seen: int) -> torch.Tensor | None:
    """(B, T) bool: which tokens of a call are not padding, by the mask it was given; None where all are tokens."""
    if isinstance(mask, dict):  # generate with a static cache: one mask for each kind of attention
        mask = next((kind for kind in mask.values() if kind is not None), None)
    if mask is None:
        return None
    B, T = tokens.shape
    if mask.ndim == 2 and mask.shape[1] >= seen + T:  # it covers the cache and then the call
        real = mask[:, seen : seen + T].bool()
    elif mask.ndim == 4:  # (B, 1, T, keys): padding at the left attends to nothing
        allowed = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        real = allowed.any(-1)[:, 0].expand(B, T)
    else:
        raise BadInput(f"An attention mask of shape {tuple(mask.shape)} does not say which of {B} x {T} are padding.")
    return None if real.all() else real.to(tokens.device)
