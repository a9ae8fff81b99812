"""Text and tokens of the labs: the published data sets, prompts, the instruction format, random tokens, the tiny text.

Importing this module is instant; torch is imported by what needs it.
"""

import json
import operator
import zlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from numbers import Number
from typing import TYPE_CHECKING

from shared.errors import BadInput, NotEnoughMemory
from shared.files import DATA
from shared.hub.store import cached, clear_cache
from shared.units import human

if TYPE_CHECKING:
    import torch
    from datasets import Dataset

__all__ = [
    "DOMAINS",
    "EXPERT_PROMPTS",  # noqa: F822  read when it is first used
    "LENGTHS",
    "SPLITS",
    "alpaca",
    "cached",
    "check_model",
    "check_text",
    "clear_cache",
    "format_instruction",
    "many",
    "padded",
    "pg19",
    "random_tokens",
    "several",
    "start_token",
    "tiny_long_text",
    "tiny_text",
    "whole",
    "wikitext",
]

DOMAINS = (
    "code",
    "mathematics",
    "creative_writing",
    "scientific_explanation",
    "logical_reasoning",
    "translation",
    "summarisation",
)
SPLITS = ("train", "heldout")
LENGTHS = (1024, 4096, 16384, 32768)
DRAWN_BYTES = 16  # for each random token: where it is drawn from, and the token


def __getattr__(name: str):
    # EXPERT_PROMPTS, {domain: prompts}, is read when it is first used.
    if name == "EXPERT_PROMPTS":
        return _prompts()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _prompts() -> dict[str, list[str]]:
    prompts = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
    return {domain: prompts[domain] for domain in DOMAINS}


# ---- published data sets ----------------------------------------------------------------------------------------


def wikitext(version: str = "2", split: str = "test") -> str:
    """WikiText, raw: articles of Wikipedia with their headings, one line a row (Merity et al. 2016).

    Args:
        version: "2", or "103" with fifty times the training text and the same "test" and "validation" articles.
        split: "test", "validation" or "train". Only that split is downloaded.

    Returns: the lines joined as they are; each ends with its own line break, and the published rows without text add
        nothing.
    Raises: BadInput, Missing, DiskFull.
    """
    if version not in ("2", "103") or split not in ("test", "validation", "train"):
        raise BadInput(
            f'WikiText has the versions "2" and "103" and the splits "test", "validation" and "train", not {version!r} '
            f"and {split!r}."
        )
    return "".join(_rows(f"wikitext-{version}", split)["text"])


def pg19(books: int = 10) -> list[str]:
    """The first `books` of the 100 test books of PG19, whole: 50,000 tokens and more each (Rae et al. 2019).

    Raises: BadInput, Missing, DiskFull.
    """
    rows = _rows("pg19", "test")
    return rows.select(range(_count(books, len(rows), "books")))["text"][:]


def alpaca(examples: int = 1000) -> "Dataset":
    """The first `examples` of Alpaca's 52,002, with "instruction", "input" and "output" (Taori et al. 2023).

    `format_instruction` writes them in Alpaca's format. Raises: BadInput, Missing, DiskFull.
    """
    rows = _rows("alpaca", "train")
    return rows.select(range(_count(examples, len(rows), "examples")))


def _rows(name: str, split: str) -> "Dataset":
    """A split of a data set, downloaded where it is missing and read through its Arrow copy."""
    from datasets import Dataset

    from shared.hub import catalogue, fetch, store

    source, folder = catalogue.DATASETS[name], fetch.fetch(name, split)
    files = [str(folder / file) for file in source.splits[split]]
    # load_dataset(repository) would fetch every split, and load_dataset(repository, data_files=...) fails offline.
    try:
        return Dataset.from_parquet(files, cache_dir=str(store.arrow(source)))
    except Exception as problem:  # its own kinds wrap what the disk said
        if sentence := fetch.uncopied(name, store.arrow(source), problem):
            raise sentence from problem
        raise


def _count(wanted: int, there: int, what: str) -> int:
    wanted = whole(wanted, f"The number of {what}")
    if not 1 <= wanted <= there:
        raise BadInput(f"There are {there:,} {what}, and {wanted:,} were asked for: choose from 1 to {there:,}.")
    return wanted


# ---- instructions, tokens, the tiny text ------------------------------------------------------------------------


def start_token(tokenizer) -> int:
    """The id of the token that starts a text: beginning-of-sequence, or end-of-text where there is none.

    Raises: BadInput where there is no tokenizer, or it has neither.
    """
    if tokenizer is None:
        raise BadInput('Text cannot be read without a tokenizer: load the model with weights="trained".')
    if not hasattr(tokenizer, "bos_token_id"):
        raise BadInput(f"A tokenizer is what models.load gives beside a model, not {_kind(tokenizer)}.")
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    raise BadInput(
        f"{type(tokenizer).__name__} has neither a beginning-of-sequence nor an end-of-text token to start a text "
        "with: set its bos_token."
    )


def format_instruction(example: Mapping[str, object]) -> str:
    """Write one example in the Alpaca format: sections with their heading on a line of its own, a blank line between.

    Args:
        example: with "instruction", and "input" and "output" where there are any. The input's section is left out when
            it is empty; without an output the text ends after the response's heading, where a model goes on. Numbers,
            True and False are written as Python writes them; None and NaN, a table's empty cell, are no text.

    Raises:
        BadInput: no instruction, or a field that is neither text nor a number, or has a lone surrogate.
    """
    if not isinstance(example, Mapping) and not (hasattr(example, "keys") and hasattr(example, "get")):  # pandas' row
        raise BadInput(f'An example is a mapping with an "instruction", not of type {type(example).__name__}.')
    # Blank lines and trailing spaces go, the indentation of a first line (code) stays.
    fields = {key: _written(example, key).strip("\n").rstrip() for key in ("instruction", "input", "output")}
    if not fields["instruction"]:
        raise BadInput(f'An example needs an "instruction" that is not empty; this one has the keys {list(example)}.')
    sections = [f"### Instruction:\n{fields['instruction']}"]
    if fields["input"]:
        sections.append(f"### Input:\n{fields['input']}")
    sections.append(f"### Response:\n{fields['output']}")
    return "\n\n".join(sections)


def _written(example, key: str) -> str:
    value = example.get(key)
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # a number of numpy or torch
        value = value.item()
    if value is None or (str(value) in ("nan", "NaN", "<NA>", "NaT") and not isinstance(value, str)):
        return ""
    if not isinstance(value, (str, Number)):
        raise BadInput(f'The field "{key}" of an example is a text or a number, not of type {type(value).__name__}.')
    return check_text(str(value), f'The field "{key}" of an example')


def check_text(text: str, what: str) -> str:
    """The text. Raises BadInput, which begins with `what`, where it cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(
            f"{what} has a lone surrogate, {text[error.start]!a}, at character {error.start}, which is no text: decode "
            'its bytes as UTF-8, or with errors="replace".'
        ) from None
    return text


def check_model(model) -> None:
    """Raise BadInput for what is no model, such as its name."""
    from torch import nn

    if not isinstance(model, nn.Module):
        raise BadInput(f"A model is what models.load gives, not {_kind(model)}.")


def _kind(value) -> str:
    """What a wrong value is, as words: a text as it is, else its type."""
    if value is None or isinstance(value, str):
        return repr(value)
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


def several(values, one: type | tuple[type, ...]) -> list:
    """The values as a list, where a single value of type `one` stands for a list of it."""
    return [values] if isinstance(values, one) or not many(values) else list(values)


def many(values) -> bool:
    """Whether one can go through the values: not so an array without dimensions, which Python calls iterable too."""
    try:
        iter(values)
    except TypeError:
        return False
    return True


def whole(value, what: str) -> int:
    """A whole number of Python, numpy or torch as an int. Raises BadInput, which begins with `what`, for any other."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise BadInput(f"{what} is a whole number, not {value!r}.")
    return number


def padded(
    rows: Sequence[Sequence[int]], pad: int = 0, side: str = "right", device=None
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows of token ids, filled up to the longest of them, and which of it are tokens.

    rows: B of them, each of one id or more. side: at which `pad` is filled in. A causal model that only reads takes it
    at the right, where no token sees it. One that goes on writing takes it at the left: it continues from the right
    end, and Mamba carries its state from there.

    Returns: ids and mask, int64 (B, T); the mask is 0 at padding.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    tensors = [torch.as_tensor(row, dtype=torch.long) for row in rows]
    ids = pad_sequence(tensors, batch_first=True, padding_value=pad, padding_side=side)
    mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True, padding_side=side)
    return ids.to(device), mask.to(device)


def random_tokens(
    vocab_size: int,
    lengths: int | Iterable[int] = LENGTHS,
    seed: int = 0,
    device="cpu",
    special_ids: int | Iterable[int] = (),
) -> dict[int, "torch.LongTensor"]:
    """Random token ids for benchmarks, batch 1.

    Special tokens sit at the ends of a vocabulary, so ids stay 100 away from both: drawn from [100, vocab_size - 100).
    A vocabulary of fewer than 399 ids keeps a quarter at each end instead, rounded down from (vocab_size + 1) / 4. Some
    models have special tokens elsewhere (DeepSeekMoE pads its embedding by 2,384 rows beyond them): name those in
    `special_ids`.

    Args:
        vocab_size: 1 or more. lengths: tokens per sequence, one or several. special_ids: ids never drawn,
            `tokenizer.all_special_ids`.

    Returns:
        {length: LongTensor (1, length)} on `device`, the same for the same seed on every device, and for one length
        whatever other lengths are asked for.

    Raises:
        BadInput: nothing is left to draw from, a length below 1, a number that is not whole, no such device.
        NotEnoughMemory: sequences that are longer than memory.
    """
    import torch

    from shared.machine import pool

    vocab_size, seed = whole(vocab_size, "The size of a vocabulary"), whole(seed, "A seed")
    lengths = [whole(length, "A sequence's length") for length in several(lengths, (str, bytes))]
    special = {whole(number, "A special id") for number in several(special_ids, (str, bytes))}
    device = pool.present_device(device)
    margin = max(0, min(100, (vocab_size + 1) // 4))
    allowed = torch.tensor([i for i in range(margin, vocab_size - margin) if i not in special], dtype=torch.long)
    if not len(allowed):
        raise BadInput(
            f"A vocabulary of {vocab_size} ids without its first and last {margin} and {len(special)} special ones "
            "leaves nothing to draw: pass the tokenizer's real size."
        )
    tokens = {}
    for length in lengths:
        if length < 1:
            raise BadInput(f"A sequence has 1 token or more; a length of {length} was asked for.")
        needed, free = DRAWN_BYTES * length, pool.available("cpu")
        if needed > free:
            raise NotEnoughMemory(
                f"{length:,} random tokens take {human(needed)}, and {human(free)} are available: draw fewer."
            )
        # The CPU's generator keeps 32 bits of its seed, so mix length and seed into those, and draw on the CPU always.
        generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {length}".encode()))
        tokens[length] = allowed[torch.randint(len(allowed), (1, length), generator=generator)].to(device)
    return tokens


def tiny_text(split: str) -> dict[str, str]:
    """The course's own text, {domain: documents joined by a blank line}, of the split "train" or "heldout"."""
    if split not in SPLITS:
        raise BadInput(f"The tiny text has the splits {' and '.join(map(repr, SPLITS))}, not {split!r}.")
    return {domain: _tiny(f"{split}/{domain}.txt") for domain in DOMAINS}


def tiny_long_text() -> str:
    """One connected story of more than 60 kB that no tiny model has seen: for measurements at long context."""
    return _tiny("long.txt")


def _tiny(name: str) -> str:
    file = DATA / "tiny" / "text" / name
    if not file.exists():
        raise BadInput(f"{file} is missing: `make tiny` writes it.")
    return file.read_text(encoding="utf-8")
