"""Python functions and classes; every asserted value is what the generated code computed."""
# ruff: noqa: E501, SIM905 (a template reads best on one line; word lists are strings, as quotes would double them)

import random
from pathlib import Path
from string import Template

import lexicon

from .engine import people, plural

THINGS = """price age score weight height length speed distance width depth cost size level rating salary mark volume
duration temperature number amount value debt fee tax share step delay offset""".split()
WORDS = """apple river stone window garden lemon tiger basket silver copper planet rocket butter candle dragon forest
hammer island jacket kitten ladder marble needle orange pencil rabbit saddle ticket velvet winter yellow anchor bridge
castle dinner engine finger guitar helmet insect""".split()
CLASSES = """Account Counter Basket Library Wallet Ledger Team Stack Drawer Register""".split()
VERBS = "add|remove take|return deposit|withdraw put|take push|pull load|unload buy|sell".split()

# Templates, one per block: `$list $item $op ...` are drawn; CALL lines become asserts with the value that the code computes.
FUNCTIONS = (Path(__file__).parent / "functions.txt").read_text(encoding="utf-8").strip().split("\n\n")
LABELS = [
    "low middle high",
    "small medium large",
    "tiny normal huge",
    "poor fair good",
    "minor moderate major",
]
UNITS = [
    "hours minutes hour 60",
    "minutes seconds minute 60",
    "weeks days week 7",
    "meters centimeters meter 100",
    "years months year 12",
]


def numbers(rng: random.Random) -> str:
    return str([rng.randint(1, 40) for _ in range(rng.randint(3, 6))])


def slots(rng: random.Random) -> dict[str, object]:
    """Draw everything a template may ask for."""
    item = rng.choice(THINGS)
    witem = rng.choice("word title label token entry tag item".split())
    words = rng.sample(WORDS, rng.randint(3, 4))
    low = rng.randint(5, 15)
    fold = rng.choice([("sum", "0", "+=", "total add sum"), ("product", "1", "*=", "multiply product times")])
    compare = rng.choice(
        [
            (">", "above", "greater than"),
            ("<", "below", "less than"),
            (">=", "from", "at least"),
            ("<=", "up_to", "at most"),
        ]
    )
    change = rng.choice(
        [
            ("raise", "+", "raised by"),
            ("lower", "-", "lowered by"),
            ("scale", "*", "multiplied by"),
            ("split", "//", "divided, rounding down, by"),
        ]
    )
    best = rng.choice(
        [("largest", ">", "max"), ("smallest", "<", "min"), ("highest", ">", "max"), ("lowest", "<", "min")]
    )
    labels, unit = rng.choice(LABELS).split(), rng.choice(UNITS).split()
    cls = rng.choice(CLASSES)
    shape = rng.choice("Room Table Window Garden Poster".split())
    inc, dec = rng.choice(VERBS).split("|")
    names = [str(one) for one in people(rng, 3)]
    drawn = rng.sample(range(2, 60), 3)
    first = numbers(rng)
    return {
        "list": plural(item),
        "item": item,
        "verb": rng.choice(fold[3].split()),
        "fold": fold[0],
        "acc": rng.choice(["total", "result"]),
        "start": fold[1],
        "accop": fold[2],
        "cmp": compare[0],
        "cmpname": compare[1],
        "cmpword": compare[2],
        "numbers": first,
        "numbers2": numbers(rng),
        "member": rng.choice(first.strip("[]").split(", ")),
        "n": rng.randint(8, 40),
        "m": rng.randint(41, 60),
        "k": rng.randint(2, 12),
        "few": rng.randint(2, 6),
        "small_n": rng.randint(2, 9),
        "low": low,
        "high": low + rng.randint(5, 20),
        "big": rng.randint(100, 999),
        "big2": rng.randint(1000, 9999),
        "close": rng.randint(10, 90),
        "changename": f"{change[0]}_{plural(item)}",
        "changeop": change[1],
        "changeword": change[2],
        "superl": best[0],
        "supercmp": best[1],
        "superfun": best[2],
        "small": labels[0],
        "middle": labels[1],
        "large": labels[2],
        "witem": witem,
        "wlist": plural(witem),
        "words": str(words).replace("'", '"'),
        "word": words[0],
        "word2": words[1],
        "word3": words[2],
        "letter": rng.choice(rng.choice(words)),
        "letter2": rng.choice(words[1]),
        "sym": rng.choice(["sign", "symbol", "character", "mark"]),
        "start_or_end": rng.choice(["start", "end"]),
        "case": (case := rng.choice(["upper", "title"])),
        "casename": {"upper": "in capital letters", "title": "with a capital first letter"}[case],
        "sep": (sep := rng.choice(["-", "+", "/", ", "])),
        "sepname": {"-": "hyphen", "+": "plus sign", "/": "slash", ", ": "comma and a space"}[sep],
        "hello": rng.choice(["Hello", "Welcome", "Good morning", "Dear"]),
        "mention": rng.choice(["here is your", "this is the", "you asked for the", "do you like the"]),
        "p": names[0],
        "q": names[1],
        "r": names[2],
        "a": drawn[0],
        "b": drawn[1],
        "c": drawn[2],
        "unit": unit[0],
        "subunit": unit[1],
        "oneunit": unit[2],
        "factor": unit[3],
        "target": rng.choice(["target", "goal"]),
        "parity": rng.choice(["multiple", "divisible"]),
        "cls": cls,
        "var": cls.lower(),
        "lower": cls.lower(),
        "goods": plural(rng.choice(lexicon.GOODS[:8])),
        "inc": inc,
        "dec": "remove" if dec == "return" else dec,
        **dict(zip(("fifo", "popindex"), rng.choice([("oldest", "0"), ("newest", "")]), strict=True)),
        "shape": shape,
        "lowshape": shape.lower(),
        **dict(
            zip(
                ("side1", "side2"),
                rng.choice([("width", "height"), ("length", "width"), ("width", "depth")]),
                strict=True,
            )
        ),
    }


def literal(value: object) -> str:
    """Return the source of a value, strings in double quotes as the documents write them."""
    return repr(value).replace("'", '"')


def document(rng: random.Random) -> str:
    """Return one function or class; its `CALL` lines become asserts or doctest results by running the code."""
    source = Template(rng.choice(FUNCTIONS)).substitute(slots(rng))
    lines, namespace = source.split("\n"), {}
    setup = [line for line in lines if not line.strip().startswith(("CALL", ">>>"))]
    exec("\n".join(setup), namespace)  # our own text: the line above is built from the templates of this file
    out = []
    for line in lines:
        if not line.strip().startswith("CALL"):
            out.append(line)
            continue
        call = line.strip().removeprefix("CALL ")
        value = eval(call, namespace)
        if line.startswith(" "):
            out.append("    " + repr(value))
        elif value is None or isinstance(value, bool):
            out.append(f"assert {call} is {value}")
        else:
            out.append(f"assert {call} == {literal(value)}")
    return "\n".join(out)
