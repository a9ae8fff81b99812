"""Why-questions and their explanations: each topic is a chain from cause through mechanism to effect.

`topics.txt` holds one topic per block: the words for its slots, `?` the question, `-` the steps of the explanation in
order. Every sentence has to be true for every choice of words.
"""

import random
from pathlib import Path

from .engine import capital, expand, paragraph


def topics() -> list[dict]:
    """Read topics.txt into dicts with `slots`, `question` and `steps`."""
    found = []
    for block in (Path(__file__).parent / "topics.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        topic = {"slots": {}, "steps": []}
        for line in block.split("\n"):
            if line.startswith("? "):
                topic["question"] = line[2:]
            elif line.startswith("- "):
                topic["steps"].append(line[2:])
            else:
                name, _, words = line.partition(": ")
                topic["slots"][name] = words.split("; ")
        found.append(topic)
    return found


TOPICS = topics()


def document(rng: random.Random) -> str:
    """Return `Question: Why/How ...?` and `Explanation: ...`."""
    topic = rng.choice(TOPICS)
    slots = {name: rng.choice(words) for name, words in topic["slots"].items()}
    question = capital(expand(rng, topic["question"], **slots))
    return f"Question: {question}\nExplanation: {paragraph(rng, topic['steps'], **slots)}"
