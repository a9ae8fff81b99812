"""What the tiny models claim, measured: used by the report that build.py writes and by the tests that assert it."""

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from train import COMMON, DOMAINS, SEED, WINDOW, in_transformers, load

from shared import data

EOS, PAD = COMMON["eos_token_id"], COMMON["pad_token_id"]

# ---- bits per byte -----------------------------------------------------------------------------------------------


@torch.no_grad()
def document_nll(model: torch.nn.Module, documents: list[list[int]], batch: int = 16) -> np.ndarray:
    """Return the negative log-likelihood in nats of each tokenised document, its end-of-text token included.

    A document starts fresh after an end-of-text token. One longer than the training window is scored in windows that
    overlap by half, every token once, so that no model is asked about positions it was never trained on.
    """
    pieces = []  # (document, tokens with their context, how many of the last ones are scored)
    for number, document in enumerate(documents):
        tokens, done = [EOS, *document, EOS], 1
        while done < len(tokens):
            start = 0 if done == 1 else done - WINDOW // 2
            end = min(len(tokens), start + WINDOW + 1)
            pieces.append((number, tokens[start:end], end - done))
            done = end
    nll = np.zeros(len(documents))
    pieces.sort(key=lambda piece: len(piece[1]))
    for first in range(0, len(pieces), batch):
        group = pieces[first : first + batch]
        ids, _ = data.padded([tokens for _, tokens, _ in group], PAD)
        logits = model(ids[:, :-1], use_cache=False).logits.float()
        losses = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        for row, (number, tokens, scored) in zip(losses, group, strict=True):
            nll[number] += row[len(tokens) - 1 - scored : len(tokens) - 1].sum().item()
    return nll


def bits_per_byte(nll: np.ndarray, texts: list[tuple[str, str]]) -> dict[str, float]:
    """Return bits per UTF-8 byte of text, overall and per domain, from the nats of each (domain, document)."""
    size = np.array([len(text.encode()) for _, text in texts])
    domain = np.array([name for name, _ in texts])
    rows = {"overall": np.full(len(texts), True)} | {name: domain == name for name in DOMAINS}
    return {name: float(nll[row].sum() / size[row].sum() / math.log(2)) for name, row in rows.items()}


class Trigram:
    """An interpolated Kneser-Ney trigram model with three discounts per order (Chen and Goodman 1999, section 4.1.6).

    The discounts are tuned on a tenth of the training documents; the counts are then taken from all of them.
    """

    GRID = (0.05, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 0.97, 1.1, 1.3, 1.5, 1.8, 2.2)

    def __init__(self, documents: list[list[int]], vocabulary: int = COMMON["vocab_size"]):
        self.V = vocabulary
        self.discounts = np.array([[0.7, 0.9, 1.1]] * 3)  # rows: unigram, bigram, trigram; columns: count 1, 2, 3+
        tuning = documents[::10]
        self._count([document for number, document in enumerate(documents) if number % 10])
        terms = self._terms(tuning)
        best = self._logs(terms).mean()
        for _ in range(2):
            for order, column in np.ndindex(3, 3):
                for value in self.GRID:
                    before = self.discounts[order, column]
                    self.discounts[order, column] = value
                    if value <= column + 1 and (score := self._logs(terms).mean()) > best:
                        best = score
                    else:
                        self.discounts[order, column] = before
        self._count(documents)

    def _grams(self, documents):
        streams = [np.array([EOS, EOS, *document, EOS], dtype=np.int64) for document in documents]
        a, b, c = (np.concatenate([s[i : len(s) - 2 + i] for s in streams]) for i in range(3))
        return a, b, c

    def _count(self, documents):
        a, b, c = self._grams(documents)
        tri, tri_count = np.unique((a * self.V + b) * self.V + c, return_counts=True)
        bi, bi_count = np.unique(tri % self.V**2, return_counts=True)  # continuation counts: distinct words before
        uni, uni_count = np.unique(bi % self.V, return_counts=True)
        self.tables = [(uni, uni_count), (bi, bi_count), (tri, tri_count)]
        self.contexts = []
        for grams, count in self.tables:
            context, where = np.unique(grams // self.V, return_inverse=True)
            kinds = [np.bincount(where, (count == n) if n < 3 else (count >= 3)) for n in (1, 2, 3)]
            self.contexts.append((context, np.bincount(where, count), np.stack(kinds)))

    def _terms(self, documents):
        """Everything a probability needs that does not depend on the discounts: per order, count, total and kinds."""
        a, b, c = self._grams(documents)
        terms = []
        for (grams, counts), (contexts, totals, kinds), gram in zip(
            self.tables, self.contexts, (c, b * self.V + c, (a * self.V + b) * self.V + c), strict=True
        ):
            at = np.minimum(np.searchsorted(grams, gram), len(grams) - 1)
            count = np.where(grams[at] == gram, counts[at], 0)
            above = np.minimum(np.searchsorted(contexts, gram // self.V), len(contexts) - 1)
            seen = contexts[above] == gram // self.V
            terms.append((count, np.where(seen, totals[above], 0), kinds[:, above] * seen))
        return terms

    def _logs(self, terms):
        p = np.full(len(terms[0][0]), 1 / self.V)
        for discount, (count, total, kinds) in zip(self.discounts, terms, strict=True):
            taken = np.where(count > 0, np.append(0, discount)[np.minimum(count, 3)], 0)
            mixed = (np.maximum(count - taken, 0) + discount @ kinds * p) / np.maximum(total, 1)
            p = np.where(total > 0, mixed, p)
        return np.log(p)

    def document_nll(self, documents: list[list[int]]) -> np.ndarray:
        """Return the negative log-likelihood in nats of each document, its end-of-text token included."""
        ends = np.cumsum([len(document) + 1 for document in documents])
        return -np.array([part.sum() for part in np.split(self._logs(self._terms(documents)), ends[:-1])])


# ---- which domain is this? ---------------------------------------------------------------------------------------


class DomainClassifier:
    """Naive Bayes over the character 5-grams of a text: a judge that knows no token and no model."""

    ORDER = 5

    def __init__(self, texts: list[tuple[str, str]]):
        self.counts = {name: Counter() for name in DOMAINS}
        for name, text in texts:
            self.counts[name].update(self._grams(text))
        self.kinds = len(set().union(*self.counts.values()))
        self.totals = {name: counter.total() + 0.1 * self.kinds for name, counter in self.counts.items()}

    def _grams(self, text: str) -> list[str]:
        return [text[i : i + self.ORDER] for i in range(len(text) - self.ORDER + 1)]

    def __call__(self, text: str) -> str | None:
        """Return the likeliest domain, or None for a text too short to judge."""
        if not (grams := self._grams(text)):
            return None
        scores = {n: sum(math.log((c[g] + 0.1) / self.totals[n]) for g in grams) for n, c in self.counts.items()}
        return max(scores, key=scores.get)


@torch.no_grad()
def continuations(model, tokenizer, texts: list[tuple[str, str]], per_domain: int = 5, new_tokens: int = 48):
    """Return (domain, opening, greedy continuation) for the first third of the first documents of each domain.

    The continuation ends with the document: what comes after the end-of-text token is another document.
    """
    chosen = [(n, text) for n in DOMAINS for text in [t for d, t in texts if d == n][:per_domain]]
    openings = [[EOS, *ids[: max(8, len(ids) // 3)]] for ids in tokenizer([text for _, text in chosen])["input_ids"]]
    batch = tokenizer.pad({"input_ids": openings}, return_tensors="pt", padding_side="left")
    written = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=PAD,
    )[:, batch["input_ids"].shape[1] :]
    decode = lambda ids: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    return [(name, decode(o), decode(w)) for (name, _), o, w in zip(chosen, openings, written, strict=True)]


def stays_in_domain(written, classifier: DomainClassifier) -> dict[str, float]:
    """Return per domain the share of continuations that the classifier recognises as of the prompt's domain."""
    right = {name: [classifier(text) == name for domain, _, text in written if domain == name] for name in DOMAINS}
    return {name: sum(hits) / len(hits) for name, hits in right.items()}


# ---- experts -----------------------------------------------------------------------------------------------------


@dataclass
class Dispatch:
    """Tokens sent to each expert, counted per layer and document: `counts[layer]` has the shape (documents, E)."""

    counts: list[np.ndarray]

    def load(self) -> list[np.ndarray]:
        """Return per layer the experts' load, as a multiple of the fair share."""
        return [layer.sum(0) * layer.shape[1] / layer.sum() for layer in self.counts]


@torch.no_grad()
def dispatch(model: torch.nn.Module, documents: list[list[int]], batch: int = 32) -> Dispatch:
    """Count what is really dispatched, by a pre-hook on every module named `experts` (hidden, top_k_index, weights)."""
    modules = [module for name, module in model.named_modules() if name.split(".")[-1] == "experts"]
    if not modules:
        return Dispatch([])
    counts: list = [[] for _ in modules]
    rows: dict = {}

    def hook(layer):
        def count(module, args):
            experts, B, T = module.num_experts, *rows["mask"].shape
            chosen = args[1].view(B, T, -1) + experts * torch.arange(B).view(B, 1, 1)
            flat = torch.bincount(chosen[rows["mask"]].flatten(), minlength=B * experts)
            counts[layer].append(flat.view(B, experts))

        return count

    handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in enumerate(modules)]
    try:
        for first in range(0, len(documents), batch):
            group = [[EOS, *document][:WINDOW] for document in documents[first : first + batch]]
            ids, mask = data.padded(group, PAD)
            rows["mask"] = mask.bool()
            model(ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Dispatch([torch.cat(layer).numpy() for layer in counts])


def mutual_information(counts: np.ndarray, labels: np.ndarray, kinds: int = len(DOMAINS)) -> float:
    """Return I(expert; domain) in nats from counts (documents, E) and the domain number of each document."""
    joint = np.eye(kinds)[labels].T @ counts
    joint = joint / joint.sum()
    product = joint.sum(0, keepdims=True) * joint.sum(1, keepdims=True)
    return float((joint * np.log(np.where(joint > 0, joint, 1) / np.where(product > 0, product, 1))).sum())


def specialisation(counts: np.ndarray, labels: np.ndarray, permutations: int = 500) -> tuple[float, float]:
    """Return I(expert; domain) and the 99th percentile of its null, where the documents' domains are permuted.

    The document is the unit: tokens of one document go together, so permuting tokens would call noise an effect.
    """
    rng = np.random.default_rng(SEED)
    null = [mutual_information(counts, rng.permutation(labels)) for _ in range(permutations)]
    return mutual_information(counts, labels), float(np.percentile(null, 99))


def labels(texts: list[tuple[str, str]]) -> np.ndarray:
    """Return the number of each document's domain."""
    return np.array([DOMAINS.index(name) for name, _ in texts])


# ---- all of it ---------------------------------------------------------------------------------------------------


def rounded(values, digits: int = 4):
    """Round every number in nested dicts and lists, so that a report reads and diffs well."""
    if isinstance(values, dict):
        return {name: rounded(value, digits) for name, value in values.items()}
    if isinstance(values, list | np.ndarray):
        return [rounded(value, digits) for value in values]
    return round(float(values), digits)


def measure(folder: Path, tokenizer, texts: list[tuple[str, str]], classifier: DomainClassifier) -> dict:
    """Return what a checkpoint shows on the held-out `texts`: bits per byte, domains kept, and its experts' use."""
    model = load(folder)
    ids = tokenizer([text for _, text in texts])["input_ids"]
    with in_transformers():
        found = {
            "bits_per_byte": bits_per_byte(document_nll(model, ids), texts),
            "stays_in_domain": stays_in_domain(continuations(model, tokenizer, texts), classifier),
        }
        sent = dispatch(model, ids)
    experts = []
    for counts, load_ in zip(sent.counts, sent.load(), strict=True):
        information, null = specialisation(counts, labels(texts))
        experts.append({"load": load_, "mutual_information": information, "null_99th_percentile": null})
    return rounded(found | ({"experts": experts} if experts else {}))
