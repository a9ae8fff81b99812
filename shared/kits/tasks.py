"""Small synthetic tasks that show what a sequence model can keep, and a selective model small enough to train live.

Every task returns `(ids, answers)`: ids LongTensor (batch, T), answers LongTensor (batch, n). The logits at the last n
positions of ids have to predict answers. Every call draws new examples, so accuracy on a training batch, taken before
the step, is accuracy on unseen examples.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shared import files
from shared.errors import BadInput
from shared.machine.process import denormals_as_zero
from shared.scan import in_transformers, selective_scan

Task = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
RECALL = files.DATA / "tiny" / "recall"

# ---- tasks ---------------------------------------------------------------------------------------------------------


def selective_copying(batch: int, generator: torch.Generator, positions: int = 64, data: int = 4, vocabulary: int = 10):
    """`data` tokens at random places among noise, then `data` markers, at which they have to be named in order.

    Token 0 is noise, the last one is the marker, those between are data. T = positions + data, n = data.
    Gu and Dao 2023, section 4.1.1 (there: 4,096 positions, 16 data tokens, vocabulary 16).
    """
    tokens = torch.randint(1, vocabulary - 1, (batch, data), generator=generator)
    places = torch.rand(batch, positions, generator=generator).argsort(1)[:, :data].sort(1).values
    noise = torch.zeros(batch, positions, dtype=torch.long)
    return torch.cat([noise.scatter(1, places, tokens), torch.full((batch, data), vocabulary - 1)], 1), tokens


def induction(batch: int, generator: torch.Generator, length: int = 64, vocabulary: int = 16):
    """Random tokens, among them once the special one; it comes again at the end: what followed it the first time?

    The special token is the last of the vocabulary. T = length, n = 1.
    Gu and Dao 2023, section 4.1.2 (there: trained at length 256, vocabulary 16).
    """
    ids = torch.randint(vocabulary - 1, (batch, length), generator=generator)
    place = torch.randint(length - 2, (batch, 1), generator=generator)
    ids.scatter_(1, place, vocabulary - 1)
    ids[:, -1] = vocabulary - 1
    return ids, ids.gather(1, place + 1)


def recall(batch: int, generator: torch.Generator, pairs: int = 8, keys: int = 32):
    """Key-value pairs, then the keys alone in another order: which value belongs to each?

    Keys are the tokens 0 to keys - 1, all different; values the tokens keys to 2 keys - 1. T = 3 pairs, n = pairs.
    The questions carry no answers: from shown ones a model reaches half by elimination.
    Arora et al. 2023, "Zoology", section 3.
    """
    chosen = torch.rand(batch, keys, generator=generator).argsort(1)[:, :pairs]
    values = torch.randint(keys, 2 * keys, (batch, pairs), generator=generator)
    order = torch.rand(batch, pairs, generator=generator).argsort(1)
    shown = torch.stack([chosen, values], 2).flatten(1)
    return torch.cat([shown, chosen.gather(1, order)], 1), values.gather(1, order)


def copying(batch: int, generator: torch.Generator, length: int = 16, vocabulary: int = 65):
    """A random string, a separator (the last token of the vocabulary), and the string has to be written again.

    While it is written, what is written so far stands in ids, as in generation. T = 2 length, n = length.
    Jelassi et al. 2024, "Repeat After Me", section 3.
    """
    text = torch.randint(vocabulary - 1, (batch, length), generator=generator)
    return torch.cat([text, torch.full((batch, 1), vocabulary - 1), text[:, :-1]], 1), text


def copying_baselines(positions: int = 64, data: int = 4, vocabulary: int = 10) -> dict[str, float]:
    """Accuracy on selective copying of three predictors that do not select, exactly.

    chance: guesses among the data tokens. position: copies from the one best place for each answer, what fixed offsets
    allow. A time-invariant model can do better: its gates and its convolution see the tokens, its scan does not.
    """
    symbols = vocabulary - 2

    def at(k: int, place: int) -> float:
        """Probability that the k-th data token stands at this place."""
        return math.comb(place, k) * math.comb(positions - 1 - place, data - 1 - k) / math.comb(positions, data)

    found = sum(max(at(k, place) for place in range(positions)) for k in range(data)) / data
    return {"chance": 1 / symbols, "position": found + (1 - found) / symbols}


# ---- the selective model -------------------------------------------------------------------------------------------


class SelectiveBlock(nn.Module):
    """A Mamba block (Gu and Dao 2023, section 3.4) in which delta, B and C each come from the input or are constants.

    A constant is learned and has the same shape without time: delta (d_inner,), B and C (d_state,). With `selects`
    empty the scan is a convolution with a kernel that training fixes; the short convolution and the gate stay.
    """

    def __init__(self, d_model: int, d_state: int, selects: tuple[str, ...]):
        super().__init__()
        d_inner, dt_rank = 2 * d_model, -(-d_model // 16)
        self.norm = nn.RMSNorm(d_model)
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, 4, groups=d_inner, padding=3)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        low, high = torch.tensor(1e-3).log(), torch.tensor(0.1).log()
        delta = (low + torch.rand(d_inner) * (high - low)).exp()
        self.dt_bias = nn.Parameter(delta + torch.log(-torch.expm1(-delta)))  # the inverse of softplus
        self.select = nn.ModuleDict({name: nn.Linear(d_inner, d_state, bias=False) for name in "BC" if name in selects})
        if "delta" in selects:
            self.select["delta"] = nn.Sequential(
                nn.Linear(d_inner, dt_rank, bias=False), nn.Linear(dt_rank, d_inner, bias=False)
            )
        self.constant = nn.ParameterDict({name: torch.randn(d_state) for name in "BC" if name not in selects})

    def inputs(self, x: Tensor) -> dict[str, Tensor]:
        """What the scan is given for the residual stream x (batch, T, d_model): u, z, delta (batch, d_inner, T), B, C
        (batch, d_state, T)."""
        u, z = self.in_proj(self.norm(x)).transpose(1, 2).chunk(2, 1)
        u = F.silu(self.conv1d(u)[..., : x.shape[1]])
        found = {name: layer(u.transpose(1, 2)).transpose(1, 2) for name, layer in self.select.items()}
        found |= {name: value[:, None].expand(len(x), -1, x.shape[1]) for name, value in self.constant.items()}
        delta = F.softplus(found.pop("delta", torch.zeros_like(u)) + self.dt_bias[:, None])
        return {"u": u, "z": z, "delta": delta, **found}

    def forward(self, x: Tensor) -> Tensor:
        y = selective_scan(A=-self.A_log.exp(), D=self.D, **self.inputs(x))
        assert isinstance(y, Tensor)  # the last state was not asked for
        return x + self.out_proj(y.transpose(1, 2))


class SelectiveModel(nn.Module):
    """Embedding, `layers` Mamba blocks, norm, head. What is named in `selects` is computed from the input."""

    def __init__(self, vocabulary, d_model=32, d_state=8, layers=2, selects=("delta", "B", "C")):
        super().__init__()
        if unknown := set(selects) - {"delta", "B", "C"}:
            raise BadInput(f"selects names {sorted(unknown)}; what can be selective is 'delta', 'B' and 'C'.")
        self.embedding = nn.Embedding(vocabulary, d_model)
        self.blocks = nn.ModuleList(SelectiveBlock(d_model, d_state, tuple(selects)) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(d_model), nn.Linear(d_model, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits (batch, T, vocabulary) for ids (batch, T)."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    @torch.no_grad()
    def delta(self, ids: Tensor) -> Tensor:
        """The step sizes (batch, layers, T, d_inner) that ids (batch, T) lead to: large writes, near 0 ignores."""
        x, steps = self.embedding(ids), []
        for block in self.blocks:
            steps.append(block.inputs(x)["delta"].transpose(1, 2))
            x = block(x)
        return torch.stack(steps, 1)


# ---- training and measuring ----------------------------------------------------------------------------------------


def _logits(model: nn.Module, ids: Tensor, n: int) -> Tensor:
    """Logits (batch, n, vocabulary) at the last n positions, of a SelectiveModel or a causal model of transformers."""
    if isinstance(model, SelectiveModel):
        return model(ids)[:, -n:]
    return model(ids, use_cache=False, logits_to_keep=n).logits


def train(
    model: nn.Module, task: Task, steps: int, seed: int = 0, batch: int = 32, lr: float = 4e-3, enough: float = math.inf
) -> list[float]:
    """Train on `steps` new batches (AdamW, ten steps of warm-up); returns the accuracy on each batch before its step.

    It ends early once the mean of the last 20 accuracies is `enough`. The same seed gives the same batches to every
    model. Initial weights are the caller's: seed before you build.
    """
    generator, correct = torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=True)
    warm_up = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
    model.train()
    with in_transformers(), denormals_as_zero():
        while len(correct) < steps and sum(correct[-20:]) < 20 * enough:
            ids, answers = task(batch, generator)
            logits = _logits(model, ids, answers.shape[1])
            correct.append((logits.argmax(-1) == answers).float().mean().item())
            F.cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            warm_up.step()
    return correct


@torch.no_grad()
def accuracy(model: nn.Module, task: Task, batches: int = 4, seed: int = 1_000_000, batch: int = 64) -> float:
    """Share of answers that are right, over `batches` new batches. Keep `seed` apart from those of training."""
    generator, right = torch.Generator().manual_seed(seed), []
    model.eval()
    with in_transformers(), denormals_as_zero():
        for _ in range(batches):
            ids, answers = task(batch, generator)
            right.append((_logits(model, ids, answers.shape[1]).argmax(-1) == answers).float().mean().item())
    return sum(right) / batches


@torch.no_grad()
def repetition(model: nn.Module, length: int = 32, strings: int = 64, seed: int = 0) -> dict[str, dict[str, float]]:
    """How a language model of transformers predicts random strings of tokens, and the same strings once more.

    Nothing but copying from the context helps. Returns {"first", "second": {"accuracy", "bits" per token}}, the first
    token of each left out.
    """
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(model.config.vocab_size, (strings, length), generator=generator).repeat(1, 2)
    model.eval()
    right, bits = [], []
    for batch in text.split(8):  # the logits of all strings at once would be a gigabyte of a large vocabulary
        with in_transformers(), denormals_as_zero():
            logits = model(batch.to(model.device), use_cache=False).logits[:, :-1].float().cpu()
        target = batch[:, 1:]
        nats = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
        right.append((logits.argmax(-1) == target).float())
        bits.append(nats / math.log(2))
    right, bits = torch.cat(right), torch.cat(bits)
    parts = {"first": slice(length - 1), "second": slice(length, None)}
    return {
        name: {"accuracy": right[:, part].mean().item(), "bits": bits[:, part].mean().item()}
        for name, part in parts.items()
    }


def recall_model(name: str) -> nn.Module:
    """The shipped "mamba", "hybrid" or "transformer", trained on `recall` and `copying`, in float32 on the CPU."""
    from shared import models

    if name not in (known := sorted(folder.name for folder in RECALL.iterdir())):
        raise BadInput(f"There is no recall model {name!r}: the course has {', '.join(known)}.")
    return models.from_folder(RECALL / name, torch.float32, torch.device("cpu"))
