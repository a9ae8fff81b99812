"""What `make reference` measured on machines of the course, to lay over what a lab measures here.

data/reference/<machine>.json has the points of a machine, by scale; scripts/reference/speed.py writes and describes it.
"""

import json
import re

import pandas as pd

from shared import results
from shared.files import DATA
from shared.units import human

FOLDER = DATA / "reference"
CHOSEN_BY = ["machine", "model", "graph", "way", "batch", "tokens"]  # what labs choose points by, where there are none


def slug() -> str:
    """This machine's name as the name of a file: "nvidia-gb10"."""
    return re.sub(r"[^a-z0-9]+", "-", str(results.machine()["machine"]).lower()).strip("-")


def machines(scale: str) -> dict[str, dict]:
    """Machine -> {made, bandwidth, columns, rows}, of the machines that were measured at a scale."""
    measured = {}
    for path in sorted(FOLDER.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if scale in content:
            measured[content[scale]["made"]["machine"]] = content[scale]
    return measured


def said(scale: str) -> str:
    """Which machines were measured, when and how far, or that none was, in a sentence."""
    found = []
    for name, content in machines(scale).items():
        made, done = content["made"], len(content["rows"])
        facts = [made["date"]]
        if done < made["planned"]:
            facts.append(f"{done} of {made['planned']} points")
        if scale == "full" and made["kernels"] != "installed":
            facts.append("without the kernels")
        found.append(f"{name} ({', '.join(facts)})")
    if found:
        return f"measured before, at scale {scale}: {', '.join(found)}"
    return f"No machine has been measured at scale {scale} yet: `make reference` does that."


def rows(part: str, scale: str) -> pd.DataFrame:
    """The points of a part (or of the parts whose names begin so) that could be measured, on all machines.

    Columns: `machine`, its `bandwidth`, and those of the file.
    """
    frames = []
    for name, content in machines(scale).items():
        frame = pd.DataFrame(content["rows"], columns=content["columns"])
        frame = frame[frame.part.str.startswith(part) & (frame.status == "ok")].dropna(axis=1, how="all")
        if len(frame):
            frames.append(frame.assign(machine=name, bandwidth=content["bandwidth"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=CHOSEN_BY)


def table(part: str, scale: str, *columns: str) -> str:
    """These columns of a part's points as text, bytes with their units; or the sentence that there are none."""
    frame = rows(part, scale)
    if frame.empty:
        return f"{part}: nothing measured on these machines" if machines(scale) else said(scale)
    shown = frame[["machine", *columns]]
    for name in shown.columns[shown.columns.str.endswith("_bytes")]:
        shown = shown.assign(**{name: shown[name].map(human)})
    return shown.to_string(index=False, float_format="{:.4g}".format)


def advantage(rows: pd.DataFrame, model: str, twin: str) -> pd.DataFrame:
    """How many times as long as `model` its `twin` takes for a token, by context: tokens, ratio of medians, low, high.

    rows: one per model and context, with GenerationTiming's decode_seconds. low and high set the quartiles against each
    other: the twin's quick steps over the model's slow ones, and the other way round.
    """
    ours, theirs = (rows[rows.model == name] for name in (model, twin))
    both = ours.merge(theirs, on="tokens", suffixes=("", "_twin")).sort_values("tokens", ignore_index=True)
    columns = {
        "tokens": both.tokens,
        "ratio": both.decode_seconds_twin / both.decode_seconds,
        "low": both.decode_seconds_q1_twin / both.decode_seconds_q3,
        "high": both.decode_seconds_q3_twin / both.decode_seconds_q1,
    }
    return pd.DataFrame(columns)


def begins(advantage: pd.DataFrame) -> int | None:
    """The first measured context from which on the whole spread lies above 1; None where it does not at the longest."""
    not_yet = advantage.index[advantage.low <= 1].max()  # NaN where there is none
    ahead = advantage.tokens if pd.isna(not_yet) else advantage.tokens.loc[not_yet + 1 :]
    return int(ahead.iloc[0]) if len(ahead) else None
