"""What every lab does in the same words: choose a scale, name the machine, say what it will take, give back.

settings = lab.choose(SETTINGS, SCALE, WEIGHTS)
device = lab.start("2.4.1")
plan = lab.forecast("2.4.1", settings, SCALE, WEIGHTS)
...
lab.compare(plan, done)
lab.give_back()
"""

import gc
from collections.abc import Mapping, Sequence

import pandas as pd

from shared import memory, models, results
from shared.errors import BadInput
from shared.kits import plans
from shared.notebooks import absent, progress

WEIGHTS = ("trained", "random")


def choose(scales: Mapping[str, dict], scale: str, weights: str, **choices: tuple[object, Sequence]) -> dict:
    """The settings of a scale, when every value of the lab's parameters is one that the lab knows.

    scales: what each scale means. choices: further parameters, each with its value and the values that are known, such
    as BITS=(16, (16, 8)).

    Raises BadInput with the values that there are.
    """
    known = {"SCALE": (scale, tuple(scales)), "WEIGHTS": (weights, WEIGHTS), **choices}
    for name, (value, values) in known.items():
        if value not in values:
            raise BadInput(f"{name} = {value!r} is unknown: choose one of {tuple(values)}.")
    return scales[scale]


def start(number: str):
    """Print the machine, its free memory and what is solved so far. Returns the device of the lab, a torch.device.

    From here on, a cell that needs what cannot be had says so and is left out (`absent.skip_cells`), and garbage is not
    looked for among what the imports have made: that took a third of a second each time.

    number: of the lab, such as "2.4.1".
    """
    device = memory.pick_device()
    print(f"device: {device}, {memory.human(memory.available(device))} of memory free")
    print(results.machine())
    print(f"{progress.said(number)}.")
    absent.skip_cells(number)
    if not gc.get_freeze_count():  # once: what a lab makes later is looked through
        gc.freeze()
    return device


def forecast(number: str, settings: dict, scale: str, weights: str, bits: int = 16) -> plans.Plan | None:
    """Print what the lab will take on this machine at scale full, and watch its cells' time. None at scale tiny."""
    if scale != "full":
        print("Scale tiny takes about a minute. Tests hold its forecasts to their factor.")
        return None
    plan = plans.lab(number, settings, weights, bits).watch()
    print(plan)
    return plan


def compare(plan: plans.Plan | None, points: pd.DataFrame | None = None) -> None:
    """Print the forecast beside the clock: each part of the lab, then, if there are any, the points of its sweep."""
    if plan is None:
        print("Scale tiny was not forecast.")
        return
    print(plan.against_the_clock())
    if points is not None:
        print(plan.against(points))


def give_back() -> None:
    """Let go of the models, and print what that freed: a kernel keeps memory that the next notebook needs."""
    print(f"models given back: {memory.human(models.unload())}")
    print(f"other tensors here: {memory.human(memory.held())}")
