"""What lab 2.4.3 needs around its statistics: texts through a model, p values of many layers, a pushed router.

Shapes: N documents, T tokens of the longest one, L layers with experts, E experts of a layer, k experts per token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared import data, experts, models
from shared.errors import BadInput, Missing, one_block

LONGEST = 256  # tokens: the window that the tiny models were trained with


@dataclass(frozen=True)
class Routed:
    """Documents and where their tokens went; the token that starts a document is left out, since all share it.

    tokens: (N, T) int64, -1 at padding. indices: layer -> (N, T, k) int64, -1 at padding. weights: layer -> (N, T, k).
    left_out: (N,) int64, tokens at a document's end that were not read, because it is longer than the window.
    """

    tokens: Tensor
    indices: dict[int, Tensor]
    weights: dict[int, Tensor]
    left_out: Tensor


@torch.inference_mode()
def route(model: nn.Module, tokenizer, texts: str | Sequence[str], batch: int = 16, longest: int = LONGEST) -> Routed:
    """Run the texts through the model, each by itself after the token that starts a document, and trace its experts.

    texts: one text or several.
    Raises: BadInput for no text, an empty one or what is none; what `experts.capture` raises.
    """
    data.check_model(model)
    start, texts = data.start_token(tokenizer), data.several(texts, str)
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise BadInput(f"A text to route is a str, not of type {type(wrong[0]).__name__}.")
    for number, text in enumerate(texts):
        data.check_text(text, f"Text {number}")
    ids = [row[row[:1] == [start] :] for row in tokenizer(texts)["input_ids"]] if texts else []  # some begin with it
    if not ids or not all(ids):
        raise BadInput("There is nothing to route in an empty text.")
    left_out = torch.tensor([max(len(row) - longest, 0) for row in ids])
    ids = [[start, *row][: longest + 1] for row in ids]
    device = next(model.parameters()).device
    with experts.capture(model) as trace, models.in_eval(model):
        for first in range(0, len(ids), batch):
            rows, mask = data.padded(ids[first : first + batch], device=device)
            # Of the logits, which nobody reads here, those of one position are the least that a model makes.
            model(input_ids=rows, attention_mask=mask, use_cache=False, logits_to_keep=1)
    after_start = lambda layers: {layer: values[:, 1:] for layer, values in layers.items()}  # noqa: E731
    return Routed(trace.tokens[:, 1:], after_start(trace.indices), after_start(trace.weights), left_out)


def reader(model: nn.Module, tokenizer, load: Callable[[], tuple]) -> Callable[[str], Routed]:
    """A function that routes one text, also after the model was given back: it then loads the model anew.

    load: gives (model, tokenizer), as `models.load` does.
    """

    def read(text: str) -> Routed:
        nonlocal model
        try:
            return route(model, tokenizer, text)
        except Missing:
            model, _ = load()
            return route(model, tokenizer, text)

    return read


def number_of_experts(model: nn.Module) -> int:
    """E of a model of which every layer has the same number of experts."""
    return next(iter(routers(model).values())).weight.shape[0]


def routers(model: nn.Module) -> dict[int, nn.Module]:
    """Layer -> the router beside its experts: its `weight` is (E, d_model), its input the hidden state.

    Raises: BadInput for a model whose routers look different.
    """
    modules, names = dict(model.named_modules()), {id(module): name for name, module in model.named_modules()}
    found = {}
    for layer, module in experts.experts_modules(model).items():
        block = modules[names[id(module)].rpartition(".")[0]]
        found[layer] = getattr(block, "gate", None) or getattr(block, "router", None)
        if getattr(getattr(found[layer], "weight", None), "ndim", 0) != 2:
            raise BadInput(f"Layer {layer} has no router with a weight (E, d_model) beside its experts.")
    return found


@one_block
def push(model: nn.Module, expert: int, by: float) -> Iterator[None]:
    """Inside the with, raise the logit of one expert by `by` in every layer and for every token.

    It adds a multiple of the router's own row to the router's input, so the logits of similar experts move too.
    """
    with ExitStack() as hooks:
        for router in routers(model).values():
            row = router.weight[expert].detach()
            step = by * row / row.square().sum()
            hook = router.register_forward_pre_hook(lambda _, args, step=step: (args[0] + step, *args[1:]))
            hooks.callback(hook.remove)
        yield
