"""A Mixture of Experts small enough to train while you watch, and what a router's choices come to.

The router is the plainest one: softmax over all experts, then the k largest. What balances it is the caller's: a loss
on the router's logits, or a bias that only the choice sees.

Shapes: B sequences, T tokens of each, L layers, E experts of a layer, k experts per token.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import data, files

Balance = Callable[[list[Tensor]], Tensor]  # router logits (B, T, E) of each layer -> what is added to the loss
Controller = Callable[[Tensor, Tensor], Tensor]  # bias (E,) and the step's counts (E,) -> the next bias (E,)
VOCABULARY = 1024  # of the course's tokenizer


# ---- the model -----------------------------------------------------------------------------------------------------


class Experts(nn.Module):
    """E gated feed-forward networks, called as transformers calls its own, so that `experts.capture` sees them too."""

    def __init__(self, experts: int, d_model: int, d_expert: int):
        super().__init__()
        self.num_experts = experts
        self.gate_up = nn.Parameter(torch.empty(experts, d_model, 2 * d_expert))
        self.down = nn.Parameter(torch.empty(experts, d_expert, d_model))

    def forward(self, hidden: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        """hidden (tokens, d_model), indices and weights (tokens, k) -> (tokens, d_model)."""
        k, order = indices.shape[1], indices.flatten().argsort(stable=True)
        # Sorted by expert, each expert's tokens are neighbours: one slice per expert instead of one search.
        groups = hidden[order // k].split(indices.flatten().bincount(minlength=self.num_experts).tolist())
        done = []
        # unbind, because the gradient of a slice is as large as the whole, zeros everywhere else.
        for tokens, gate_up, down in zip(groups, self.gate_up.unbind(), self.down.unbind(), strict=True):
            gate, up = (tokens @ gate_up).chunk(2, -1)
            done.append((F.silu(gate) * up) @ down)
        done = torch.cat(done) * weights.flatten()[order, None]
        return torch.zeros_like(hidden).index_add(0, order // k, done)


class MoE(nn.Module):
    """A router and its experts. `logits` (B, T, E) and `chosen` (B, T, k) are those of the last call."""

    def __init__(self, experts: int, top_k: int, d_model: int, d_expert: int, renormalise: bool):
        super().__init__()
        self.top_k, self.renormalise = top_k, renormalise
        self.router = nn.Linear(d_model, experts, bias=False)
        self.experts = Experts(experts, d_model, d_expert)
        self.register_buffer("bias", torch.zeros(experts))  # added to what is chosen by, never to the weights

    def forward(self, x: Tensor) -> Tensor:
        self.logits = self.router(x)
        scores = self.logits.softmax(-1)
        self.chosen = (scores.detach() + self.bias).topk(self.top_k).indices
        weights = scores.gather(-1, self.chosen)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return self.experts(x.flatten(0, 1), self.chosen.flatten(0, 1), weights.flatten(0, 1)).view_as(x)


class Block(nn.Module):
    """Causal attention, then the mixture, each normalised before and added to the residual stream."""

    def __init__(self, d_model: int, heads: int, **mixture):
        super().__init__()
        self.heads, self.norms = heads, nn.ModuleList(nn.RMSNorm(d_model) for _ in range(2))
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        self.moe = MoE(d_model=d_model, **mixture)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.out(attended)
        return x + self.moe(self.norms[1](x))


class SmallMoE(nn.Module):
    """A language model of mixture blocks over the course's tokenizer. Seed torch before you build it.

    All weights start from 0.02 and the embedding from 1: a fresh router sees the tokens nearly as they are, and next to
    nothing of what attention mixes into them.
    """

    def __init__(
        self,
        layers: int = 2,
        experts: int = 16,
        top_k: int = 2,
        renormalise: bool = True,
        d_model: int = 64,
        d_expert: int = 32,
        window: int = 128,
    ):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, d_model)
        self.position = nn.Embedding(window, d_model)
        mixture = {"experts": experts, "top_k": top_k, "d_expert": d_expert, "renormalise": renormalise}
        self.blocks = nn.ModuleList(Block(d_model, heads=4, **mixture) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d_model), nn.Linear(d_model, VOCABULARY, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=1.0 if name == "embedding.weight" else 0.02)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits (B, T, vocabulary) for input_ids (B, T), T at most the window."""
        x = self.embedding(input_ids) + self.position.weight[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @property
    def mixtures(self) -> list[MoE]:
        return [block.moe for block in self.blocks]


# ---- text ----------------------------------------------------------------------------------------------------------


@cache
def tokens(split: str) -> dict[str, Tensor]:
    """The tiny text as token ids, {domain: (tokens,)}."""
    from transformers import AutoTokenizer

    folder = files.DATA / "tiny" / "tokenizer"
    tokenizer = AutoTokenizer.from_pretrained(folder, model_max_length=10**9, trust_remote_code=False)
    return {domain: torch.tensor(tokenizer(text).input_ids) for domain, text in data.tiny_text(split).items()}


def batches(steps: int, seed: int, size: int = 8, window: int = 128) -> Iterator[Tensor]:
    """Yield `steps` batches (size, window + 1) of training text; each row is from one domain, drawn anew."""
    generator, texts = torch.Generator().manual_seed(seed), list(tokens("train").values())
    for _ in range(steps):
        rows = []
        for domain in torch.randint(len(texts), (size,), generator=generator).tolist():
            start = int(torch.randint(len(texts[domain]) - window, (1,), generator=generator))
            rows.append(texts[domain][start : start + window + 1])
        yield torch.stack(rows)


# ---- training and measuring ----------------------------------------------------------------------------------------


@dataclass
class History:
    """loss (steps,) in nats per token on each batch before its step; counts (steps, L, E), choices of each expert."""

    loss: Tensor
    counts: Tensor


def train(
    model: SmallMoE,
    steps: int,
    seed: int = 0,
    balance: Balance | None = None,
    controller: Controller | None = None,
    lr: float = 1e-2,
) -> History:
    """Train on `steps` new batches (AdamW, ten steps of warm-up); the same seed gives every model the same batches.

    balance: its value, times the weight that it carries itself, is added to the loss of the language model.
    controller: moves the selection bias of each layer after each step, from the counts of that step.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    losses, counts = [], []
    model.train()
    for batch in batches(steps, seed, window=model.position.num_embeddings):
        loss = F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        losses.append(loss.item())
        counts.append(torch.stack([_counts(mixture) for mixture in model.mixtures]))
        if balance is not None:
            loss = loss + balance([mixture.logits for mixture in model.mixtures])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        warm_up.step()
        if controller is not None:
            for mixture, count in zip(model.mixtures, counts[-1], strict=True):
                mixture.bias.copy_(controller(mixture.bias, count))
    return History(torch.tensor(losses), torch.stack(counts))


def _counts(mixture: MoE) -> Tensor:
    return mixture.chosen.flatten().bincount(minlength=mixture.experts.num_experts)


@torch.no_grad()
def evaluate(model: SmallMoE) -> tuple[float, Tensor]:
    """On the held-out text: nats per token, and how often each expert was chosen, counts (domains, L, E)."""
    model.eval()
    window, total, scored, counts = model.position.num_embeddings, 0.0, 0, []
    for ids in tokens("heldout").values():
        rows = ids[: (len(ids) - 1) // window * window + 1].unfold(0, window + 1, window)
        total += F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
        scored += rows[:, 1:].numel()
        counts.append(torch.stack([_counts(mixture) for mixture in model.mixtures]))
    return total / scored, torch.stack(counts)
