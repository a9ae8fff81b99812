"""One long story: a fixed cast lives through many plots, and earlier owners, finds and promises come up again."""
# ruff: noqa: E501 (a template reads best on one line)

import random

import lexicon

from . import creative
from .engine import paragraph, person

CAST = ["Mara", "Hugo", "Ruth", "Finn", "Greta", "Oscar"]
LENGTH = 64_000
RECALLS = [
    "{hero} [still remembered|had not forgotten] how {past[hero]} and {past[friend]} had [met|talked] at the {past[other]} "
    "[because of|about] the {past[material]} {past[object]}.",
    '"Have you forgotten the {past[material]} {past[object]}?" asked {friend}. "[Of course not.|How could I?] It '
    'brought {past[hero]} and {past[friend]} together," [said|answered] {hero}.',
    "[In those days|That year], {past[hero]} was still the {past[job]} of {town}, and {past[hero]}'s {past[animal]} [slept in|"
    "guarded] the {past[place]} every night.",
]


def story(rng: random.Random) -> str:
    """Return `Story: ...`, chapters of one paragraph each, without a blank line."""
    homes = dict(zip(CAST, rng.sample(lexicon.PLACES, len(CAST)), strict=True))
    animals = dict(zip(CAST, rng.sample(lexicon.ANIMALS, len(CAST)), strict=True))
    jobs = dict(zip(CAST, rng.sample(lexicon.JOBS, len(CAST)), strict=True))
    town, history, chapters, size = rng.choice(lexicon.TOWNS), [], [], 0
    things = [(m, o) for m in lexicon.MATERIALS for o in lexicon.OBJECTS]
    while size < LENGTH:
        hero, friend = rng.sample(CAST, 2)
        material, thing = things.pop(rng.randrange(len(things)))
        slots = creative.cast(
            rng,
            hero=person(hero),
            friend=person(friend),
            place=homes[hero],
            other=homes[friend],
            town=town,
            animal=animals[hero],
            job=jobs[hero],
            object=thing,
            material=material,
        )
        opening, plot = creative.beginning(rng, without=("stranger",))
        recall = [rng.choice(RECALLS)] if history else []
        past = {key: str(value) for key, value in rng.choice(history).items()} if history else {}
        chapters.append(paragraph(rng, [opening, *recall, *plot, rng.choice(creative.ENDINGS)], past=past, **slots))
        size += len(chapters[-1]) + 1
        history.append(slots)
    return "Story: " + "\n".join(chapters) + "\n"
