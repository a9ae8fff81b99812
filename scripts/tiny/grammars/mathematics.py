"""Problems with their worked solutions: every number in a solution is computed from the numbers of its problem."""
# ruff: noqa: E501, SIM905 (a template reads best on one line; word lists are strings, as quotes would double them)

import random

import lexicon

from .engine import capital, expand, people, plural


def write(rng: random.Random, problem: str, solution: str, **slots) -> str:
    """Fill both parts with the same slots and capitalise them."""
    return f"Problem: {capital(expand(rng, problem, **slots))}\nSolution: {capital(expand(rng, solution, **slots))}"


def packing(rng: random.Random) -> str:
    p, q = people(rng, 2)
    good, box = plural(rng.choice(lexicon.GOODS)), plural(rng.choice(lexicon.CONTAINERS))
    n, m = rng.randint(2, 12), rng.randint(3, 20)
    gone = rng.randint(2, n * m - 2)
    problem = (
        "{p} [buys|has|fills|brings|owns] {n} {box} with {m} {good} in each. [{p.He} gives {gone} {good} to {q}|{q} takes {gone} "
        "of the {good}|Then {p.he} sells {gone} of the {good} to {q}]. How many {good} [does {p} have now|are left for {p}]?"
    )
    solution = (
        "The {box} hold {n} * {m} = {total} {good}. Without the {gone} that {q} has, {p} keeps {total} - {gone} = {rest} {good}. "
        "Answer: {rest} {good}."
    )
    solution = solution.replace(
        "After [giving away|losing] {gone}, {p} has", "Without the {gone} that {q} has, {p} keeps"
    )
    return write(
        rng, problem, solution, p=p, q=q, good=good, box=box, n=n, m=m, gone=gone, total=n * m, rest=n * m - gone
    )


def sharing(rng: random.Random) -> str:
    p, q, r = people(rng, 3)
    good = plural(rng.choice(lexicon.GOODS))
    each = rng.randint(3, 30)
    first = rng.randint(2, 3 * each - 2)
    problem = (
        "{p} [collects|finds|buys|picks] {a} {good} and {q} [collects|finds|buys|picks] {b} {good}. They share all {good} equally "
        "with {r}. How many {good} does each of the three get?"
    )
    solution = "Together they have {a} + {b} = {total} {good}. Each of the three gets {total} / 3 = {each} {good}. Answer: {each} {good}."
    return write(
        rng, problem, solution, p=p, q=q, r=r, good=good, a=first, b=3 * each - first, total=3 * each, each=each
    )


def equation(rng: random.Random) -> str:
    a, x, b = rng.randint(2, 15), rng.randint(2, 20), rng.randint(1, 50)
    letter = rng.choice("xyznk")
    if rng.random() < 0.5:
        c = a * x + b
        solution = (
            "[First,|] [subtract|take] {b} from both sides: {a} * {v} = {c} - {b} = {d}. [Then divide|Divide] both sides by {a}: "
            "{v} = {d} / {a} = {x}. Check: {a} * {x} + {b} = {c}. Answer: {v} = {x}."
        )
        sign = "+"
    else:
        b = rng.randint(1, a * x - 1)
        c = a * x - b
        solution = (
            "[First,|] add {b} to both sides: {a} * {v} = {c} + {b} = {d}. [Then divide|Divide] both sides by {a}: "
            "{v} = {d} / {a} = {x}. Check: {a} * {x} - {b} = {c}. Answer: {v} = {x}."
        )
        sign = "-"
    problem = "[Solve|Find {v} in|Work out {v} from] the equation {a} * {v} {sign} {b} = {c}."
    problem = rng.choice(
        [
            problem,
            "I think of a number, multiply it by {a} and then [add|subtract] {b}. The result is {c}. Call "
            "the number {v}: {a} * {v} {sign} {b} = {c}. [What is it|Which number is it]?",
        ]
    )
    problem = problem.replace("[add|subtract]", "add" if sign == "+" else "subtract")
    return write(rng, problem, solution, a=a, b=b, c=c, d=a * x, x=x, v=letter, sign=sign)


def sequence(rng: random.Random) -> str:
    kind = rng.choice(["add", "subtract", "multiply"])
    step, terms = rng.randint(2, 15), []
    if kind == "multiply":
        step, terms = rng.randint(2, 4), [rng.randint(1, 12)]
    else:
        terms = [rng.randint(1, 60) + (90 if kind == "subtract" else 0)]
    for _ in range(6):
        terms.append(terms[-1] * step if kind == "multiply" else terms[-1] + (step if kind == "add" else -step))
    sign = {"add": "+", "subtract": "-", "multiply": "*"}[kind]
    say = {"add": "{s} more than", "subtract": "{s} less than", "multiply": "{s} times as large as"}[kind]
    problem = "[Look at|Consider|Study] the sequence {a}, {b}, {c}, {d}. [What are the next two numbers|Which two numbers come next]?"
    solution = (
        "Each number is " + say + " the one before: {a} {sign} {s} = {b} and {b} {sign} {s} = {c}. "
        "The next number is {d} {sign} {s} = {e}, and after it comes {e} {sign} {s} = {f}. Answer: {e} and {f}."
    )
    return write(rng, problem, solution, s=step, sign=sign, **dict(zip("abcdef", terms, strict=False)))


def percentage(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    thing, rate = rng.choice(lexicon.OBJECTS), rng.choice([5, 10, 15, 20, 25, 30, 40, 50, 60, 75])
    price = 20 * rng.randint(2, 45)
    part = price * rate // 100
    up = rng.random() < 0.4
    problem = (
        "{p} [wants to buy|looks at|chooses|needs] a {material} {thing} that costs {price} coins. [In {month}|On {day}], the shop "
        "{verb}s the price by {rate} percent. What does the {thing} cost then?"
    )
    solution = (
        "One percent of {price} is {price} / 100, so {rate} percent is {price} * {rate} / 100 = {part} coins. The new price is "
        "{price} {sign} {part} = {new} coins. Answer: {new} coins."
    )
    return write(
        rng,
        problem,
        solution,
        p=p,
        thing=thing,
        material=rng.choice(lexicon.MATERIALS),
        price=price,
        rate=rate,
        part=part,
        month=rng.choice(lexicon.MONTHS),
        day=rng.choice(lexicon.DAYS),
        verb="raise" if up else "lower",
        sign="+" if up else "-",
        new=price + part if up else price - part,
    )


def area(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    shape = rng.choice("garden field floor wall carpet courtyard meadow playground roof lawn".split())
    w, h, cost = rng.randint(2, 25), rng.randint(2, 25), rng.randint(2, 9)
    kind = rng.choice(["area", "border", "triangle"])
    slots = {"p": p, "shape": shape, "w": w, "h": h, "cost": cost}
    start = "{p} [measures|plans|owns|draws] a rectangular {shape} that is {w} meters long and {h} meters wide. "
    if kind == "area":
        problem = (
            start
            + "One square meter of [paint|cloth|grass|stone] costs {cost} coins. What does the whole {shape} cost?"
        )
        solution = "The area is {w} * {h} = {a} square meters. At {cost} coins each, that is {a} * {cost} = {t} coins. Answer: {t} coins."
        slots |= {"a": w * h, "t": w * h * cost}
    elif kind == "border":
        problem = (
            start
            + "[A fence|A rope|A ribbon] goes once around the {shape}, and {cost} meters are kept in reserve. How long must it be?"
        )
        solution = (
            "Half of the border is {w} + {h} = {a} meters, and all of it is 2 * {a} = {b} meters. With the reserve, that makes "
            "{b} + {cost} = {t} meters. Answer: {t} meters."
        )
        slots |= {"a": w + h, "b": 2 * (w + h), "t": 2 * (w + h) + cost}
    else:
        slots |= {"w": 2 * w, "a": 2 * w * h, "t": w * h}
        problem = "{p} [draws|cuts out|measures] a triangle with a base of {w} meters and a height of {h} meters on the {shape}. What is its area?"
        solution = (
            "A rectangle of the same base and height has {w} * {h} = {a} square meters. The triangle is half of it: {a} / 2 = {t}. "
            "Answer: {t} square meters."
        )
    return write(rng, problem, solution, **slots)


def travel(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    start, goal = rng.sample(lexicon.TOWNS, 2)
    means, speed = rng.choice(
        [
            ("bicycle", rng.randint(10, 25)),
            ("car", rng.randint(40, 99)),
            ("train", rng.randint(60, 150)),
            ("boat", rng.randint(8, 30)),
            ("horse", rng.randint(8, 20)),
        ]
    )
    hours, rest = rng.randint(2, 9), rng.randint(2, 9)
    problem = (
        "{p} [travels|goes] from {start} to {goal} by {means}. [The {means} covers|The {means} makes] {speed} kilometers in an hour, and the "
        "[way|journey] takes {hours} hours. "
    )
    slots = {"p": p, "start": start, "goal": goal, "means": means, "speed": speed, "hours": hours, "d": speed * hours}
    if rng.random() < 0.5:
        problem += "How far is {goal} from {start}, there and back?"
        solution = "One way is {speed} * {hours} = {d} kilometers. There and back, {p} covers 2 * {d} = {t} kilometers. Answer: {t} kilometers."
        slots["t"] = 2 * speed * hours
    else:
        problem += "From {goal}, {p.he} goes on for {rest} kilometers on foot. How far is it in all?"
        solution = "The {means} covers {speed} * {hours} = {d} kilometers. With the walk, it is {d} + {rest} = {t} kilometers. Answer: {t} kilometers."
        slots |= {"rest": rest, "t": speed * hours + rest}
    return write(rng, problem, solution, **slots)


def average(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    good = plural(rng.choice(lexicon.GOODS))
    count, mean = rng.randint(3, 5), rng.randint(6, 40)
    values = [max(2, mean + rng.randint(-5, 5)) for _ in range(count - 1)]
    values.append(count * mean - sum(values))
    if values[-1] < 2:
        return average(rng)
    days = rng.sample(lexicon.DAYS, 1)[0]
    problem = (
        "[From {day} on|Starting on {day}], {p} [sells|counts|collects|packs] {values} {good} on {count} days. "
        "How many {good} is that per day on average?"
    )
    solution = "The sum is {sum} = {total}. There are {count} days, so the average is {total} / {count} = {mean}. Answer: {mean} {good} per day."
    return write(
        rng,
        problem,
        solution,
        p=p,
        good=good,
        count=count,
        mean=mean,
        day=days,
        total=sum(values),
        values=", ".join(map(str, values[:-1])) + f" and {values[-1]}",
        sum=" + ".join(map(str, values)),
    )


def ages(rng: random.Random) -> str:
    p, q = people(rng, 2)
    age, diff, later = rng.randint(4, 40), rng.randint(2, 30), rng.randint(2, 12)
    problem = (
        "{p} is {age} years old. {q}, who is [{p}'s neighbour|{p}'s cousin|a {job}], is {diff} years older than {p}. "
        "How old will {q} be in {later} years?"
    )
    solution = "Today {q} is {age} + {diff} = {now} years old. In {later} years, {q} will be {now} + {later} = {then}. Answer: {then} years."
    return write(
        rng,
        problem,
        solution,
        p=p,
        q=q,
        age=age,
        diff=diff,
        later=later,
        now=age + diff,
        then=age + diff + later,
        job=rng.choice(lexicon.JOBS),
    )


def fraction(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    good = rng.choice(lexicon.GOODS)
    name, parts = rng.choice([("half", 2), ("a third", 3), ("a quarter", 4), ("a fifth", 5), ("a tenth", 10)])
    part = rng.randint(2, 30)
    problem = (
        "There are {all} {good} in {p}'s {box}. [Exactly|Only|Just] {name} of the {good} are {colour}, and the [rest|others] are {colour2}. "
        "How many {good} are {colour2}?"
    )
    solution = "The {colour} ones are {all} / {parts} = {part} {good}. The {colour2} ones are {all} - {part} = {rest} {good}. Answer: {rest} {good}."
    one, two = rng.sample(lexicon.COLOURS, 2)
    slots = {
        "all": part * parts,
        "rest": part * parts - part,
        "good": plural(good),
        "box": rng.choice(lexicon.CONTAINERS),
    }
    return write(rng, problem, solution, p=p, name=name, parts=parts, part=part, colour=one, colour2=two, **slots)


def change(rng: random.Random) -> str:
    p, q = people(rng, 2)
    a, b = rng.sample(lexicon.GOODS, 2)
    n, m, x, y = rng.randint(2, 9), rng.randint(2, 9), rng.randint(2, 15), rng.randint(2, 15)
    total = n * x + m * y
    paid = (total // 50 + 1 + (total % 50 == 49)) * 50
    problem = (
        "At {q}'s [shop|stall|stand], one {a} costs {x} cents and one {b} costs {y} cents. {p} [buys|takes|orders] {n} {aa} and {m} {bb} "
        "and pays with {paid} cents. How much money does {p.he} get back?"
    )
    solution = (
        "The {aa} cost {n} * {x} = {c} cents and the {bb} cost {m} * {y} = {d} cents, together {c} + {d} = {total} cents. "
        "{p} gets back {paid} - {total} = {rest} cents. Answer: {rest} cents."
    )
    return write(
        rng,
        problem,
        solution,
        p=p,
        q=q,
        a=a,
        b=b,
        aa=plural(a),
        bb=plural(b),
        n=n,
        m=m,
        x=x,
        y=y,
        c=n * x,
        d=m * y,
        total=total,
        paid=paid,
        rest=paid - total,
    )


def remainder(rng: random.Random) -> str:
    p = people(rng, 1)[0]
    good, box = plural(rng.choice(lexicon.GOODS)), rng.choice(lexicon.CONTAINERS)
    size, full = rng.randint(3, 12), rng.randint(3, 15)
    rest = rng.randint(2, size - 1)
    problem = (
        "{p} [packs|sorts|puts] {n} {good} into {boxes}, and every {box} holds exactly {size} {good}. How many {boxes} are full, and "
        "how many {good} remain?"
    )
    solution = (
        "{p} fills {full} {boxes}, because {full} * {size} = {used} and another {box} would need {used} + {size} = {more} {good}. There remain "
        "{n} - {used} = {rest} {good}. Answer: {full} full {boxes} and {rest} {good}."
    )
    return write(
        rng,
        problem,
        solution,
        p=p,
        good=good,
        box=box,
        boxes=plural(box),
        size=size,
        full=full,
        n=full * size + rest,
        used=full * size,
        rest=rest,
        more=(full + 1) * size,
    )


KINDS = [
    packing,
    sharing,
    equation,
    equation,
    sequence,
    percentage,
    area,
    travel,
    average,
    ages,
    fraction,
    change,
    remainder,
]


def document(rng: random.Random) -> str:
    """Return `Problem: ...` and `Solution: ...`."""
    return rng.choice(KINDS)(rng)
