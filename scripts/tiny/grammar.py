"""Write the text of the tiny models: `python scripts/tiny/grammar.py` fills data/tiny/text, always with the same bytes.

Seven probabilistic grammars, one per domain (`grammars/`), written for this course. A domain's held-out documents put
the words of its training documents into new sentences: a document is redrawn if it has a long sentence that training
has, or a word that training does not have.
"""

import random
import re
from pathlib import Path

from grammars import code, creative, logic, long_story, mathematics, science, summary, translation

from shared import files

DOMAINS = {
    "code": code,
    "mathematics": mathematics,
    "creative_writing": creative,
    "scientific_explanation": science,
    "logical_reasoning": logic,
    "translation": translation,
    "summarisation": summary,
}
BYTES = {"train": 145_000, "heldout": 17_500}  # per domain
FOLDER = files.DATA / "tiny" / "text"
LENGTH = range(100, 901)  # characters of a document


def document(domain: str, rng: random.Random) -> str:
    """Return one document of a domain: 100 to 900 characters without a blank line."""
    while True:
        text = DOMAINS[domain].document(rng)
        if len(text) in LENGTH:
            return text


def sentences(text: str) -> list[str]:
    """Return the sentences (in code: the lines) of eight or more words: what must not recur in the held-out split."""
    parts = re.split(r"(?<=[.?!])\s+|\n", text)
    return [part for part in parts if len(part.split()) >= 8]


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without numbers and signs."""
    return re.findall(r"[^\W\d_]+", text.lower())


def documents(domain: str, split: str) -> list[str]:
    """Return the documents of a domain in a split, drawn until the split has its bytes; no document comes twice."""
    train = [] if split == "train" else documents(domain, "train")
    seen = {part for text in train for part in [text, *sentences(text)]}
    known = {word for text in train for word in words(text)}
    rng, found, size = random.Random(f"{domain} {split}"), {}, 0
    while size < BYTES[split]:
        text = document(domain, rng)
        new = text not in found and not seen.intersection([text, *sentences(text)])
        if new and (split == "train" or known.issuperset(words(text))):
            found[text] = None
            size += len(text.encode()) + 2
    return list(found)


def corpus(split: str) -> dict[str, str]:
    """Return the text of each domain for `split`, "train" or "heldout": documents joined by blank lines."""
    if split not in BYTES:
        raise ValueError(f"There is no split {split!r}: choose one of {', '.join(BYTES)}.")
    return {domain: "\n\n".join(documents(domain, split)) + "\n" for domain in DOMAINS}


def long_text() -> str:
    """Return one connected story of at least 60 KB with a fixed cast, for long contexts."""
    return long_story.story(random.Random("long story"))


def write(folder: str | Path = FOLDER) -> None:
    """Write train/, heldout/ and long.txt below `folder`."""
    for split in BYTES:
        for domain, text in corpus(split).items():
            files.write(Path(folder) / split / f"{domain}.txt", text)
    files.write(Path(folder) / "long.txt", long_text())


if __name__ == "__main__":
    write()
