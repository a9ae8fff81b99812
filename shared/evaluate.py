"""Perplexity of a language model, with every token scored exactly once.

A text is tokenized once; what starts it is the beginning-of-sequence token, which is read and not scored. Windows of
`window` tokens move on by `stride`, and a window scores only what no earlier one has scored, so its first tokens are
context. These are the windows of EleutherAI's lm-evaluation-harness (utils.get_rolling_token_windows); its rolling
log-likelihood has a stride as long as the window.

    with windows:  perplexity(model, tokenizer, texts, window=256, stride=128)
    in one pass:   perplexity(model, tokenizer, texts, window=256, carry=True)

The second hands the model's cache from window to window: full context, nothing read twice, and for Mamba, whose cache
is a state of fixed size, constant memory over a whole book.

Under `torchrun`, with torch.distributed initialised, each process evaluates its share of the documents and every one
returns the whole result, equal to the last bit to that of one process: batches never cross a group of documents.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import models, timing
from shared.errors import BadInput
from shared.scan import in_transformers

Text = str | Iterable[str]  # an iterable is read piece by piece, such as the lines of a file
BATCH_TOKENS = 2048  # of one forward, padding counted, where a window is not longer; their logits take the memory
GROUP_CHARACTERS = 2**14  # documents are batched together, and given to a process, in groups of about this size
PIECE = 2**16  # characters of a streamed text that are tokenized at once
POOL = 256  # windows that are sorted by length before they are batched
BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


@dataclass(frozen=True)
class Document:
    """What one document gave. nll in nats, over `tokens` scored tokens; words between white space; bytes of UTF-8."""

    nll: float
    tokens: int
    words: int
    bytes: int


@dataclass(frozen=True)
class Perplexity:
    """Sums over all documents, and each document for what resamples them. nll in nats."""

    nll: float
    tokens: int
    words: int
    bytes: int
    documents: tuple[Document, ...]

    @property
    def token_perplexity(self) -> float:
        """exp of the mean nats per token. Models with different tokenizers have different tokens: do not compare."""
        return math.exp(self.nll / self.tokens)

    @property
    def word_perplexity(self) -> float:
        return math.exp(self.nll / self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / self.bytes


def perplexity(
    model, tokenizer, texts: Iterable[Text], window: int, stride: int | None = None, carry: bool = False
) -> Perplexity:
    """Score every token of every text once.

    Args:
        texts: documents; each a string, or an iterable of strings that is streamed and need not fit in memory.
        window: tokens that the model reads at once.
        stride: tokens between the starts of two windows, at most `window`, which is the default.
        carry: hand the cache from window to window instead; the context is then all that came before.

    Raises:
        BadInput: a window or stride that is none, no tokenizer, no text.
        ContextTooLong: more than the model's positions.
    """
    share, shares = _process()
    groups = (group for number, group in enumerate(_groups(texts)) if number % shares == share)
    found = {}
    for group in groups:
        readers = {number: _Reader(tokenizer, text) for number, text in group}
        nats = dict.fromkeys(readers, 0.0)
        for part, scores in _scores(model, readers, window, stride, carry):
            nats[part.document] += scores.sum().item()
        for number, reader in readers.items():
            found[number] = Document(nats[number], reader.tokens, reader.words, reader.bytes)
    if shares > 1:
        every = [None] * shares
        torch.distributed.all_gather_object(every, found)
        found = {number: document for part in every for number, document in part.items()}
    documents = tuple(found[number] for number in sorted(found))
    tokens, words, size = (sum(getattr(d, name) for d in documents) for name in ("tokens", "words", "bytes"))
    if not tokens:
        raise BadInput("There is no text to score: every document is empty.")
    return Perplexity(math.fsum(d.nll for d in documents), tokens, words, size, documents)


def token_nll(
    model, tokenizer, text: Text, window: int, stride: int | None = None, carry: bool = False
) -> tuple[Tensor, Tensor]:
    """Nats of each token of one text, (tokens,) float64, and how many tokens the model saw before each, (tokens,).

    The arguments are those of `perplexity`. The first token of a text has one before it: the one that starts it.
    """
    found = []
    for part, scores in _scores(model, {0: _Reader(tokenizer, text)}, window, stride, carry):
        before = torch.arange(len(scores)) + part.first + 1 + (part.start if carry else 0)
        found.append((part.start + part.first, scores, before))
    if not found:
        raise BadInput("There is no text to score: the document is empty.")
    _, nats, before = zip(*sorted(found, key=lambda row: row[0]), strict=True)
    return torch.cat(nats), torch.cat(before)


# ---- text -> tokens -> windows -------------------------------------------------------------------------------------


class _Reader:
    """A text's tokens, piece by piece, and what went by: tokens, words, bytes."""

    def __init__(self, tokenizer, text: Text):
        if tokenizer is None:
            raise BadInput('Text cannot be scored without a tokenizer: load the model with weights="trained".')
        self.tokenizer, self.text = tokenizer, text
        self.tokens = self.words = self.bytes = 0

    def __iter__(self) -> Iterator[list[int]]:
        begin = self.tokenizer.bos_token_id
        yield [self.tokenizer.eos_token_id if begin is None else begin]
        for piece in [self.text] if isinstance(self.text, str) else _pieces(self.text):
            ids = self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            self.tokens += len(ids)
            self.words += len(piece.split())
            self.bytes += len(piece.encode())
            yield ids


def _pieces(stream: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that end before a single space between two words.

    Byte-level tokenizers (all of the course's but Mixtral's and Jamba's) begin a token there, so the tokens are those
    of the whole text; SentencePiece puts one more in front of each piece.
    """
    held = ""
    for part in stream:
        held += part
        while cut := BETWEEN_WORDS.search(held, PIECE):
            yield held[: cut.start()]
            held = held[cut.start() :]
    if held:
        yield held


class _Window(NamedTuple):
    """A model reads ids[:-1] and predicts ids[first + 1 :], of which no earlier window has scored any."""

    document: int
    ids: list[int]
    first: int
    start: int  # where ids begin in the document


def _windows(document: int, pieces: Iterable[list[int]], window: int, stride: int, carry: bool) -> Iterator[_Window]:
    """The last window is as long as the others: it reaches back, so that its tokens have their context too."""
    held, base, start, done = [], 0, 0, 0  # held[0] is the token at `base`
    for piece in pieces:
        held += piece
        while base + len(held) > start + window:
            yield _Window(document, held[start - base : start - base + window + 1], done - start, start)
            done, start = start + window, start + stride
        before = max(0, start - stride)
        del held[: before - base]
        base = before
    end = base + len(held) - 1
    if end > done:
        start = done if carry else max(0, end - window)
        yield _Window(document, held[start - base :], done - start, start)


def _groups(texts: Iterable[Text]) -> Iterator[list[tuple[int, Text]]]:
    """Documents with their numbers, so many together that a batch can be filled; a streamed one stands alone."""
    group, size = [], 0
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        group.append((number, text))
        size += len(text) if isinstance(text, str) else GROUP_CHARACTERS
        if size >= GROUP_CHARACTERS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _process() -> tuple[int, int]:
    """Which of how many processes this is."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


# ---- windows -> nats -----------------------------------------------------------------------------------------------


def _scores(
    model, readers: dict[int, _Reader], window: int, stride: int | None, carry: bool
) -> Iterator[tuple[_Window, Tensor]]:
    """Each window of each document with the nats (k,) float64 of what it scores, in any order."""
    stride = window if stride is None else stride
    if not 1 <= stride <= window:
        raise BadInput(f"A window of {window} tokens with a stride of {stride}: choose 1 <= stride <= window.")
    if carry and stride != window:
        raise BadInput("With carry=True nothing is read twice: leave the stride out.")
    recurrent = model.config.model_type in timing.STATE_ONLY
    if not recurrent:
        models.check_context(model, window)
    for document, reader in readers.items() if carry else ():
        cache = None
        for part in _windows(document, reader, window, window, carry):
            if not recurrent:
                models.check_context(model, part.start + len(part.ids) - 1)
            (scores,), cache = _nats(model, [part], cache, carry=True)
            yield part, scores
    every = (part for item in readers.items() for part in _windows(*item, window, stride, carry))
    while not carry and (pool := list(islice(every, POOL))):
        for batch in _batches(pool):
            yield from zip(batch, _nats(model, batch)[0], strict=True)


def _batches(pool: list[_Window]) -> Iterator[list[_Window]]:
    """Windows of similar length together, as many as BATCH_TOKENS hold."""
    batch = []
    for part in sorted(pool, key=lambda part: (len(part.ids), part.first)):
        if batch and (len(batch) + 1) * (len(part.ids) - 1) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(part)
    yield batch


@torch.inference_mode()
def _nats(model, batch: list[_Window], cache=None, carry: bool = False) -> tuple[list[Tensor], object]:
    """Nats of what each window of a batch scores, and the cache after it.

    Padding stands at the right, where a causal model's earlier positions do not see it: no mask is needed. Logits are
    made from the first scored position on.
    """
    first, longest = min(part.first for part in batch), max(len(part.ids) for part in batch)
    ids = torch.tensor([part.ids + [0] * (longest - len(part.ids)) for part in batch], device=model.device)
    with in_transformers():
        logits, cache = timing.forward(model, ids[:, :-1], cache, keep=longest - 1 - first, use_cache=carry)
    nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, first + 1 :].flatten(), reduction="none")
    rows = nats.view(len(batch), -1).double().cpu()
    return [row[p.first - first : len(p.ids) - 1 - first] for row, p in zip(rows, batch, strict=True)], cache
