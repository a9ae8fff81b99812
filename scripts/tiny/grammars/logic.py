"""Deductions: premises in shuffled order, a question, and an answer that names the steps it follows from."""
# ruff: noqa: SIM905 (word lists are strings, as quotes would double them)

import random
import re
from itertools import pairwise

import lexicon

from .engine import ARTICLE, capital, expand, people, plural

GROUPS = """painter swimmer dancer reader climber gardener singer cyclist sailor baker skater runner farmer writer
drummer fencer juggler hiker weaver potter""".split()
# True chains: every one of the first is one of the second, and so on; chains with different ends exclude each other.
CHAINS = """robin bird animal|sparrow bird animal|trout fish animal|salmon fish animal|spaniel dog animal|lizard reptile
animal|beetle insect animal|maple tree plant|birch tree plant|daisy flower plant|tulip flower plant|sedan car machine|
tractor vehicle machine|cottage house building|chapel church building|castle fortress building""".replace("\n", " ")
CHAINS = [chain.split() for chain in CHAINS.split("|")]
ORDERS = [
    ("older", "younger", "oldest", "youngest"),
    ("taller", "shorter", "tallest", "shortest"),
    ("faster", "slower", "fastest", "slowest"),
    ("heavier", "lighter", "heaviest", "lightest"),
    ("stronger", "weaker", "strongest", "weakest"),
    ("richer", "poorer", "richest", "poorest"),
]
THINGS = (
    "gate window lamp door fountain clock bridge curtain engine heater radio kettle oven elevator alarm fan".split()
)
STATES = [
    ("open", "closed"),
    ("dry", "wet"),
    ("warm", "cold"),
    ("clean", "dirty"),
    ("loud", "silent"),
    ("full", "empty"),
    ("bright", "dark"),
    ("ready", "broken"),
]
FITS = {
    "gate": (0,),
    "window": (0, 3),
    "lamp": (6, 7),
    "door": (0,),
    "fountain": (1, 3),
    "clock": (4, 7),
    "bridge": (1, 7),
    "curtain": (0, 1, 3),
    "engine": (2, 4, 7),
    "heater": (2, 7),
    "radio": (4, 7),
    "kettle": (2, 5),
    "oven": (2, 3, 5),
    "elevator": (5, 7),
    "alarm": (4, 7),
    "fan": (4, 7),
}


def layout(rng: random.Random, premises: list[str], question: str, answer: str) -> str:
    rng.shuffle(premises)
    text = f"Premises: {' '.join(map(capital, premises))}\nQuestion: {question}\nAnswer: {answer}"
    return ARTICLE.sub(r"\1n ", text)


def syllogism(rng: random.Random) -> str:
    """A chain `every a is a b`, perhaps ending in `no b is a c`, applied to one individual."""
    who = people(rng, 2)
    personal, negative = rng.random() < 0.65, rng.random() < 0.35
    if personal:
        chain = rng.sample(GROUPS, rng.randint(3, 4))
        name, spare = str(who[0]), f"{who[1]} is a {rng.choice([group for group in GROUPS if group not in chain])}."
    else:
        chain, other = rng.sample(CHAINS, 2)
        while negative and other[-1] == chain[-1]:
            other = rng.choice(CHAINS)
        name, spare = f"the {rng.choice(lexicon.COLOURS)} thing", f"every {other[0]} is a {other[1]}."
        chain = [*chain, other[-1]] if negative else chain
    rules = [f"every {a} is a {b}." for a, b in pairwise(chain)]
    if negative:
        rules[-1] = f"no {chain[-2]} is a {chain[-1]}."
    kind = rng.choice(["forward", "forward", "backward"])
    start, goal = (chain[0], chain[-1]) if kind == "forward" else (chain[-1], chain[0])
    fact = f"{name} is a {start}."
    steps = f"{capital(name)} is a {start}"
    if kind == "forward":
        for at, (a, b) in enumerate(pairwise(chain)):
            last = negative and at == len(chain) - 2
            steps += f", and {'no' if last else 'every'} {a} is a {b}, so {name} is {'not ' if last else ''}a {b}"
        answer = f"{'No' if negative else 'Yes'}. {steps}."
    elif negative:
        steps = f"if {name} were a {goal}, {name} would be a {chain[-2]}, but no {chain[-2]} is a {start}"
        answer = f"No. {capital(name)} is a {start}: {steps}."
    else:
        answer = (
            f"It cannot be decided. Every {goal} is a {start}, but a {start} need not be a {goal}, and {name} is "
            f"only known to be a {start}."
        )
    return layout(rng, [*rules, fact, spare], f"Is {name} a {goal}?", answer)


def ordering(rng: random.Random) -> str:
    """A chain of comparisons in both directions; the extreme, one pair, or a pair that cannot be decided."""
    more, less, most, least = rng.choice(ORDERS)
    names = [str(one) for one in people(rng, rng.randint(4, 5))]
    if rng.random() < 0.35 and more in ("heavier", "older"):
        names = [
            f"the {colour} {noun}"
            for noun in [rng.choice(["box", "stone", "vase", "clock", "book"])]
            for colour in rng.sample(lexicon.COLOURS, len(names))
        ]

    def compare(a, b):
        return f"{a} is {more} than {b}." if rng.random() < 0.6 else f"{b} is {less} than {a}."

    kind = rng.choice(["extreme", "extreme", "pair", "pair", "open"])
    if kind == "open":
        top, left, right, rest, *_ = names
        premises = [compare(top, left), compare(top, right), compare(left, rest)]
        answer = (
            f"It cannot be decided. {capital(top)} is {more} than both {left} and {right}, but nothing compares {left} "
            f"with {right}."
        )
        return layout(rng, premises, f"Is {left} {more} than {right}?", answer)
    premises = [compare(a, b) for a, b in pairwise(names)]
    order = f"From the {most} to the {least}, the order is {', '.join(names)}"
    if kind == "extreme":
        word, who = rng.choice([(most, names[0]), (least, names[-1])])
        return layout(
            rng,
            premises,
            f"Who is the {word}?" if "the" not in who else f"Which is the {word}?",
            f"{order}, so {who} is the {word}.",
        )
    first, second = rng.sample(range(len(names)), 2)
    yes = first < second
    relation = f"{names[first]} is {more if yes else less} than {names[second]}"
    return layout(
        rng,
        premises,
        f"Is {names[first]} {more} than {names[second]}?",
        f"{'Yes' if yes else 'No'}. {order}, so {relation}.",
    )


def state(rng: random.Random, thing: str) -> tuple[str, str]:
    """Return a statement about a thing and its opposite."""
    one = rng.choice(STATES[rng.choice(FITS[thing])])
    return f"the {thing} is {one}", f"the {thing} is not {one}"


def conditional(rng: random.Random) -> str:
    """`If p, q` and `if q, r`: modus ponens, modus tollens, or the fallacies, which decide nothing."""
    things = rng.sample(THINGS, 4)
    facts = [state(rng, thing) for thing in things[:3]]
    facts = [pair if rng.random() < 0.75 else pair[::-1] for pair in facts]
    (p, not_p), (q, not_q), (r, not_r) = facts
    rules = [f"if {p}, {q}.", f"if {q}, {r}."]
    spare = state(rng, things[3])[0] + "."
    kind = rng.choice(["ponens", "ponens", "tollens", "tollens", "affirm", "deny"])

    if kind == "ponens":
        fact, asked = p, r
        answer = f"{'No' if ' not ' in r else 'Yes'}. {capital(p)}, so {q}. Because {q}, {r}."
    elif kind == "tollens":
        fact, asked = not_r, p
        answer = f"{'No' if ' not ' in not_p else 'Yes'}. {capital(not_r)}, so {not_q}. Because {not_q}, {not_p}."
    elif kind == "affirm":
        fact, asked = r, p
        answer = f"It cannot be decided. The rule says that if {q}, {r}. It does not say that if {r}, {q}."
    else:
        fact, asked = not_p, r
        answer = f"It cannot be decided. The rule says what follows if {p}. It says nothing for the case that {not_p}."
    question = capital(re.sub(r"(the \w+) is (?:not )?(\w+)", r"is \1 \2?", asked))
    return layout(rng, [*rules, fact + ".", spare], question, answer)


def elimination(rng: random.Random) -> str:
    """A thing is in one of three places and not in two of them; what lies with it is where it is."""
    thing, other = rng.sample(lexicon.OBJECTS, 2)
    thing = f"{rng.choice(lexicon.MATERIALS)} {thing}"
    places = rng.sample(lexicon.PLACES, 3)
    name = people(rng, 1)[0]
    premises = [f"the {thing} is in the {places[0]}, the {places[1]} or the {places[2]}."]
    out = rng.sample(places, 3)
    known = rng.choice([2, 2, 1])
    premises += [f"the {thing} is not in the {place}." for place in out[:known]]
    premises.append(f"the {other} is in the same place as the {thing}.")
    asked = rng.choice([thing, other])
    premises.append(
        expand(
            rng,
            "{name} [has searched|lives near|never visits|works near] the {place}.",
            name=name,
            place=rng.choice(lexicon.PLACES),
        )
    )
    if known == 1:
        answer = (
            f"It cannot be decided. The {thing} is not in the {out[0]}, but it may be in the {out[1]} or the {out[2]}."
        )
    else:
        answer = (
            f"In the {out[2]}. The {thing} is not in the {out[0]} and not in the {out[1]}, so it is in the {out[2]}"
        )
        answer += "." if asked == thing else f", and the {other} is in the same place."
    return layout(rng, premises, f"Where is the {asked}?", answer)


def row(rng: random.Random) -> str:
    """Houses in a row: left and right are transitive too."""
    noun = rng.choice(["house", "shop", "tent", "chair", "boat", "flag", "hut", "cart"])
    colours = rng.sample(lexicon.COLOURS, rng.randint(4, 5))
    names = [f"the {colour} {noun}" for colour in colours]
    pairs = list(pairwise(names))
    premises = [f"{a} stands left of {b}." if rng.random() < 0.5 else f"{b} stands right of {a}." for a, b in pairs]
    order = f"From left to right, the {plural(noun)} are {', '.join(colours)}"
    if rng.random() < 0.5:
        side, who = rng.choice([("left", names[0]), ("right", names[-1])])
        return layout(rng, premises, f"Which {noun} stands farthest to the {side}?", f"{order}, so it is {who}.")
    first, second = rng.sample(range(len(names)), 2)
    yes = first < second
    return layout(
        rng,
        premises,
        f"Does {names[first]} stand left of {names[second]}?",
        f"{'Yes' if yes else 'No'}. {order}, so {names[first]} stands {'left' if yes else 'right'} of {names[second]}.",
    )


def document(rng: random.Random) -> str:
    """Return `Premises: ...`, `Question: ...` and `Answer: ...`."""
    return rng.choice([syllogism, ordering, conditional, conditional, elimination, row])(rng)
