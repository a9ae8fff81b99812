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
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared import data, models
from shared.errors import BadInput, CourseError
from shared.scan import in_transformers

Text = str | Iterable[str]  # an iterable is read piece by piece, such as the lines of a file
BATCH_TOKENS = 2048  # of one forward, padding counted, where a window is not longer; their logits take the memory
GROUP_CHARACTERS = 2**14  # documents are batched together, and given to a process, in groups of about this size
PIECE = 2**15  # characters of a streamed text that are tokenized at once; twice as many at most
POOL = 256  # windows that are sorted by length before they are batched
PROBE = 64  # tokens of each of the two windows that show whether a model goes on from its cache
CARRY_ROUNDING = 64  # times the dtype's precision: how far a token's nats may be off
# Where byte-level tokenizers begin a token, the best first: a space between words; white space after a letter or digit
# (some take line breaks to the punctuation before them); any other; punctuation after a letter or digit.
BOUNDARIES = tuple(
    re.compile(f"{before}{after}")
    for before, after in (
        (r"(?<=\S)", r" (?=\S)"),
        (r"(?<=[^\W_])", r"(?=\s)"),
        (r"(?<=\S)", r"(?=\s)"),
        (r"(?<=[^\W_])", r"(?=[!-/:-@\[-`{-~、-】！-／])"),
    )
)


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
        return _exp(self.nll, self.tokens)

    @property
    def word_perplexity(self) -> float:
        """exp of the mean nats per word; inf where no float is as large, as for one long word, and without words."""
        return _exp(self.nll, self.words)

    @property
    def bits_per_byte(self) -> float:
        return self.nll / math.log(2) / self.bytes


def _exp(nll: float, units: int) -> float:
    try:
        return math.exp(nll / units)
    except (OverflowError, ZeroDivisionError):
        return math.inf


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
        BadInput: a window or stride that is none, no tokenizer or one without a token that starts a text, no text, a
            document (named by its number) that is none, a model that does not go on exactly from its cache.
        ContextTooLong: more than the model's positions.
    """
    data.check_model(model)
    share, shares = _process()
    groups = (group for number, group in enumerate(_groups(texts)) if number % shares == share)
    found, problem = {}, None
    try:
        for group in groups:
            readers = {number: _Reader(tokenizer, text, number) for number, text in group}
            nats = dict.fromkeys(readers, 0.0)
            for part, scores in _scores(model, readers, window, stride, carry):
                nats[part.document] += scores.sum().item()
            for number, reader in readers.items():
                found[number] = Document(nats[number], reader.tokens, reader.words, reader.bytes)
    except Exception as error:  # the other processes wait for this one: they have to hear of it
        problem = error
    every = _from_each((found, problem), shares)
    if problem := problem or next((theirs for _, theirs in every if theirs), None):
        raise problem
    found = {number: document for part, _ in every for number, document in part.items()}
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
    data.check_model(model)
    found = []
    for part, scores in _scores(model, {0: _Reader(tokenizer, _checked(text, 0), 0)}, window, stride, carry):
        before = torch.arange(len(scores)) + part.first + 1 + (part.start if carry else 0)
        found.append((part.start + part.first, scores, before))
    if not found:
        raise BadInput("There is no text to score: the document is empty.")
    _, nats, before = zip(*sorted(found, key=lambda row: row[0]), strict=True)
    return torch.cat(nats), torch.cat(before)


# ---- text -> tokens -> windows -------------------------------------------------------------------------------------


class _Reader:
    """A text's tokens, piece by piece, and what went by: tokens, words, bytes."""

    def __init__(self, tokenizer, text: Text, number: int = 0):
        self.begin, self.tokenizer = data.start_token(tokenizer), tokenizer
        self.text, self.number = text, number
        self.tokens = self.words = self.bytes = 0

    def __iter__(self) -> Iterator[list[int]]:
        yield [self.begin]
        for piece in [self.text] if isinstance(self.text, str) else _pieces(_parts(self.text, self.number)):
            ids = self.tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            self.tokens += len(ids)
            self.words += len(piece.split())
            self.bytes += len(piece.encode())
            yield ids


def _checked(text, number: int) -> Text:
    """The document, or BadInput with its number where it is neither a text nor a stream of texts."""
    if not isinstance(text, str):
        if _is_series(text):
            return text
        raise BadInput(f"Document {number} is {_said(text)}: give a str, or an iterable of str.")
    return data.check_text(text, f"Document {number}")


def _is_series(texts) -> bool:
    """Whether one can go through it text by text: not so bytes, a dict or a table, of which one would get the names."""
    return data.many(texts) and not isinstance(texts, (bytes, bytearray, Mapping)) and not hasattr(texts, "columns")


def _parts(stream: Iterable, number: int) -> Iterator[str]:
    for count, part in enumerate(stream):
        if not isinstance(part, str):
            raise BadInput(f"Part {count} of document {number} is {_said(part)}: a streamed text has parts of str.")
        yield str(_checked(part, number))


def _said(value) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _pieces(stream: Iterable[str]) -> Iterator[str]:
    """The same text in pieces of PIECE to 2 PIECE characters, but for the last, cut at the first of BOUNDARIES.

    Byte-level tokenizers (all of the course's but Mixtral's and Jamba's) begin a token there, so the tokens are those
    of the whole text; SentencePiece puts one more in front of each piece. A run of PIECE characters that has no
    boundary, such as letters alone, is cut where it reaches that size.
    """
    held, size = [], 0
    for part in stream:
        held.append(part)
        size += len(part)
        if size < 2 * PIECE:
            continue
        text, start = "".join(held), 0
        while len(text) - start >= 2 * PIECE:
            least, most = start + PIECE, start + 2 * PIECE
            cuts = (boundary.search(text, least, most) for boundary in BOUNDARIES)
            end = next((cut.start() for cut in cuts if cut), most)
            yield text[start:end]
            start = end
        held, size = [text[start:]], len(text) - start
    if size:
        yield "".join(held)


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
    if not _is_series(texts):
        raise BadInput(
            f"The documents are {_said(texts)}: give a list of str, such as the values of a dict or a column."
        )
    group, size = [], 0
    for number, text in enumerate([texts] if isinstance(texts, str) else texts):
        group.append((number, _checked(text, number)))
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


def _from_each(own: tuple[dict, Exception | None], shares: int) -> list[tuple[dict, Exception | None]]:
    """What every process found, or why it could not, in their order."""
    if shares == 1:
        return [own]
    found, problem = own
    if problem and not isinstance(problem, CourseError):  # no process can read each error of another
        problem = CourseError(f"Another process stopped with {type(problem).__name__}: {problem}")
    every: list = [None] * shares
    torch.distributed.all_gather_object(every, (found, problem))
    return every


# ---- windows -> nats -----------------------------------------------------------------------------------------------


def _scores(
    model, readers: dict[int, _Reader], window: int, stride: int | None, carry: bool
) -> Iterator[tuple[_Window, Tensor]]:
    """Each window of each document with the nats (k,) float64 of what it scores, in any order."""
    window = data.whole(window, "A window, in tokens,")
    stride = window if stride is None else data.whole(stride, "A stride, in tokens,")
    if not 1 <= stride <= window:
        raise BadInput(f"A window of {window} tokens with a stride of {stride}: choose 1 <= stride <= window.")
    if carry and stride != window:
        raise BadInput("With carry=True nothing is read twice: leave the stride out.")
    recurrent = model.config.model_type in models.running.STATE_ONLY
    if not recurrent:
        models.check_context(model, window)
    proven = False
    for document, reader in readers.items() if carry else ():
        cache = before = None
        for part in _windows(document, reader, window, window, carry):
            if not recurrent:
                models.check_context(model, part.start + len(part.ids) - 1)
            if before and not proven:
                _check_carries(model, before.ids)
                proven = True
            before = part
            (scores,), cache = _nats(model, [part], cache, carry=True)
            yield part, scores
    every = (part for item in readers.items() for part in _windows(*item, window, stride, carry))
    while not carry and (pool := list(islice(every, POOL))):
        for batch in _batches(pool):
            yield from zip(batch, _nats(model, batch)[0], strict=True)


def _check_carries(model, ids: list[int]) -> None:
    """Read a short piece of a window twice over, in one pass and in two: raise BadInput where the nats differ.

    Some hybrids of transformers (Bamba) drop their state where a filled cache is continued by more than one token, and
    some models have no cache to hand over.
    """
    size = int(min(len(ids) - 1, PROBE, models.positions(model) // 2))
    twice = ids[:size] * 2 + ids[:1]
    whole, first, second = (
        _Window(0, twice, size, 0),
        _Window(0, twice[: size + 1], 0, 0),
        _Window(0, twice[size:], 0, 0),
    )
    expected = _nats(model, [whole])[0][0]
    _, cache = _nats(model, [first], carry=True)
    found = _nats(model, [second], cache, carry=True)[0][0]
    off = (found - expected).abs().max().item()
    if not off <= CARRY_ROUNDING * torch.finfo(model.dtype).eps * (1 + expected.abs().max().item()):
        raise BadInput(
            f"A model of the family {model.config.model_type} does not go on exactly from its cache: the nats of a "
            f"token differ by {off:.2g} from one pass; leave carry=True out, and choose a stride instead."
        )


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
    first = min(part.first for part in batch)
    ids, _ = data.padded([part.ids for part in batch], device=model.device)
    with in_transformers(), models.in_eval(model):
        logits, cache = models.forward(model, ids[:, :-1], cache, keep=ids.shape[1] - 1 - first, use_cache=carry)
    nats = F.cross_entropy(logits.flatten(0, 1).float(), ids[:, first + 1 :].flatten(), reduction="none")
    rows = nats.view(len(batch), -1).double().cpu()
    return [row[p.first - first : len(p.ids) - 1 - first] for row, p in zip(rows, batch, strict=True)], cache
