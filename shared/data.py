"""Text and tokens for the labs that need no download: prompts, the instruction format, random tokens, the tiny text.

Importing this module is instant; torch is imported by what needs it.
"""

import json
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import BadInput

if TYPE_CHECKING:
    import torch

DATA = Path(__file__).resolve().parents[1] / "data"
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


def __getattr__(name: str):
    # EXPERT_PROMPTS, {domain: prompts}, is read when it is first used.
    if name == "EXPERT_PROMPTS":
        return _prompts()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _prompts() -> dict[str, list[str]]:
    prompts = json.loads((DATA / "prompts.json").read_text(encoding="utf-8"))
    return {domain: prompts[domain] for domain in DOMAINS}


def format_instruction(example: Mapping[str, str | None]) -> str:
    """Write one example in the Alpaca format: sections with their heading on a line of its own, a blank line between.

    Args:
        example: with "instruction", and "input" and "output" where there are any. The input's section is left out when
            it is empty; without an output the text ends after the response's heading, where a model goes on.

    Raises:
        BadInput: no instruction.
    """
    # Blank lines and trailing spaces go, the indentation of a first line (code) stays.
    fields = {key: (example.get(key) or "").strip("\n").rstrip() for key in ("instruction", "input", "output")}
    if not fields["instruction"]:
        raise BadInput(f'An example needs an "instruction" that is not empty; this one has the keys {list(example)}.')
    sections = [f"### Instruction:\n{fields['instruction']}"]
    if fields["input"]:
        sections.append(f"### Input:\n{fields['input']}")
    sections.append(f"### Response:\n{fields['output']}")
    return "\n\n".join(sections)


def random_tokens(
    vocab_size: int,
    lengths: Iterable[int] = LENGTHS,
    seed: int = 0,
    device="cpu",
    special_ids: Iterable[int] = (),
) -> dict[int, "torch.LongTensor"]:
    """Random token ids for benchmarks, batch 1.

    Special tokens sit at the ends of a vocabulary, so ids stay 100 away from both: drawn from [100, vocab_size - 100).
    A vocabulary of fewer than 399 ids keeps a quarter at each end instead, rounded down from (vocab_size + 1) / 4. Some
    models have special tokens elsewhere (DeepSeekMoE pads its embedding by 2,384 rows beyond them): name those in
    `special_ids`.

    Args:
        vocab_size: 1 or more. lengths: tokens per sequence. special_ids: ids never drawn, `tokenizer.all_special_ids`.

    Returns:
        {length: LongTensor (1, length)} on `device`, the same for the same seed on every device, and for one length
        whatever other lengths are asked for.

    Raises:
        BadInput: nothing is left to draw from, or a length below 1.
    """
    import torch

    margin = min(100, (vocab_size + 1) // 4)
    special = set(special_ids)
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
