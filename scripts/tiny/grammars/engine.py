"""Template expansion and the English morphology that the grammars share."""
# ruff: noqa: SIM905 (word lists are strings, as quotes would double them)

import random
import re
from dataclasses import dataclass

import lexicon

CHOICE = re.compile(r"\[([^\[\]]*)\]")
ARTICLE = re.compile(r"\b([Aa]) (?=(?!uni|use|usu|one\b|once|euro)[aeiou]|hour|honest)", re.IGNORECASE)
NUMBERS = "zero one two three four five six seven eight nine ten eleven twelve".split()


@dataclass(frozen=True)
class Person:
    """A character whose pronouns agree with the name: `{p}`, `{p.he}`, `{p.him}`, `{p.his}`, `{p.He}`."""

    name: str
    he: str
    him: str
    his: str

    def __str__(self) -> str:
        return self.name

    @property
    def He(self) -> str:
        return self.he.capitalize()

    @property
    def His(self) -> str:
        return self.his.capitalize()


def person(name: str) -> Person:
    """Return the Person of a first name in the lexicon."""
    return Person(name, "she", "her", "her") if name in lexicon.WOMEN else Person(name, "he", "him", "his")


def people(rng: random.Random, count: int) -> list[Person]:
    """Draw `count` different people."""
    return [person(name) for name in rng.sample(lexicon.WOMEN + lexicon.MEN, count)]


def expand(rng: random.Random, template: str, **slots) -> str:
    """Fill `{slot}` from `slots`, then replace each `[a|b|c]` (they may nest) with one of its alternatives."""
    text = template.format(**slots)
    while match := CHOICE.search(text):
        text = text[: match.start()] + rng.choice(match.group(1).split("|")) + text[match.end() :]
    text = re.sub(r" +", " ", text).replace(" ,", ",").replace(" .", ".").strip()
    return ARTICLE.sub(r"\1n ", text)


def capital(text: str) -> str:
    """Return `text` with its first letter in upper case, also behind an opening quotation mark."""
    at = 1 if text.startswith('"') else 0
    return text[:at] + text[at : at + 1].upper() + text[at + 1 :]


def paragraph(rng: random.Random, templates: list[str], **slots) -> str:
    """Expand each template into a sentence and join them with spaces; an empty expansion is left out."""
    sentences = [capital(expand(rng, template, **slots)) for template in templates]
    return " ".join(sentence for sentence in sentences if sentence)


def plural(noun: str) -> str:
    """Return the plural of an English noun; of a phrase, the plural of its last word."""
    head, _, last = noun.rpartition(" ")
    if last in lexicon.IRREGULAR_PLURALS:
        last = lexicon.IRREGULAR_PLURALS[last]
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    elif re.search(r"(s|x|z|ch|sh)$", last):
        last += "es"
    else:
        last += "s"
    return f"{head} {last}".strip()


def listing(items: list[str]) -> str:
    """Join words as English does: `a, b and c`."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
