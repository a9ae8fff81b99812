"""What each lab will take at scale full, before it measures: seconds by part, memory, and the points it will leave out.

    plan = plans.lab("2.4.1", settings)   # on this machine, or on=forecast.SPARK
    print(plan)
    ...
    print(plan.against_the_clock())       # at the lab's end: each part as forecast and as it was

The sizes are those of the lab's settings and of the published configs; how long a corpus is that is not here yet stands
below. A part is what some cells do, and the clock knows cells by their source.
"""

import ast
import re
import sys
import time
from functools import cache, partial
from types import SimpleNamespace

import pandas as pd
import torch

from shared import data, evaluate, notebooks, results, scan, timing
from shared.errors import BadInput
from shared.hub.catalogue import Config
from shared.kits import counting, forecast
from shared.kits.counting import Work
from shared.kits.forecast import Machine
from shared.machine import kernels
from shared.models.cards import card, published_config
from shared.models.sizes import size
from shared.units import human

TOKEN = 4  # bytes of English text that a token stands for, about
WIKITEXT = 1_290_000  # bytes of WikiText-2's test split
EXAMPLE, PROMPT = 250, 80  # tokens of the longest of a batch of Alpaca's examples, and of a prompt, about


class Plan:
    """The parts of a lab with their seconds, and the most memory that any of them takes; print it."""

    def __init__(self, lab: str, on: Machine, dtype=torch.bfloat16, weights: str = "trained", bits: int = 16):
        self.lab, self.on, self.dtype, self.weights, self.bits = lab, on, dtype, weights, bits
        self.parts: dict[str, float] = {}
        self.cells: dict[str, tuple[str, ...]] = {}
        self.models: list[str] = []
        self.left_out: list[str] = []
        self.peak_bytes = 0

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    def part(self, name: str, seconds: float, *cells: str) -> None:
        """Note what some cells do, and how long it takes."""
        self.parts[name], self.cells[name] = seconds, cells

    # ---- what parts are made of: each returns seconds and notes the memory ---------------------------------------

    def load(self, times: int, *names: str) -> float:
        """Load each model so many times: as published, from the disk. Random weights are made, which is not counted."""
        self.models += [name for name in names if name not in self.models]
        if self.weights == "random":
            return 0.0
        stored = [name for name in names if not isinstance(card(name).source, Config)]
        published = [size(name, published_config(name).dtype or self.dtype).weight_bytes for name in stored]
        return times * sum(published) / self.on.disk

    def read(self, name: str, tokens: float, window: int, batch: int = 1, path: str | None = None) -> float:
        """Read so many tokens in windows, `batch` of them at once."""
        expected = forecast.generation(name, window, self.on, batch, self.dtype, path)
        self._held(name, expected.peak_bytes)
        return expected.prefill_seconds * tokens / (window * batch)

    def score(self, name: str, tokens: float, window: int, batch: int = 1) -> float:
        """Read so many tokens and score each: the logits of all positions, which a generation does not make."""
        config = published_config(name)
        logits = window * batch * config.vocab_size
        scored = Work(
            flops=2 * logits * config.hidden_size,
            other_bytes=5 * logits * torch.float32.itemsize,  # made, widened, normalised, and read for each of these
            peak_bytes=logits * (self.dtype.itemsize + 2 * torch.float32.itemsize),
        )
        self._held(name, self.on.held(scored.peak_bytes))
        return self.read(name, tokens, window, batch) + self.on.seconds(scored) * tokens / (window * batch)

    def write(self, name: str, prompt: int, new: int, batch: int = 1, runs: int = 1) -> float:
        """Read a prompt and write after it, `batch` sequences at once, so many times."""
        expected = forecast.generation(name, prompt, self.on, batch, self.dtype)
        self._held(name, expected.peak_bytes)
        return runs * (expected.prefill_seconds + new * expected.decode_seconds)

    def sweep(self, name: str, contexts, batch: int = 1, slow: float = timing.SLOW, **options) -> float:
        """What `timing.sweep` takes with these options; where it will end is noted."""
        seconds, limit = 0.0, getattr(published_config(name), "max_position_embeddings", None)
        for tokens in sorted(contexts):
            expected = forecast.generation(name, tokens, self.on, batch, self.dtype)
            if why := forecast.left_out(name, tokens, self.on, batch, self.dtype, slow):
                self.left_out.append(f"{name}, batch {batch}, from {tokens:,} tokens on ({why})")
                break
            chosen = options | timing.long_point(expected.prefill_seconds, slow)
            once = expected.prefill_seconds + options["new_tokens"] * expected.decode_seconds
            runs = chosen["repeats"] + chosen["warmup"]
            least = chosen.get("least_seconds", 0.0) + chosen["warmup"] * once
            seconds += max(runs * once, least)
            self._held(name, expected.peak_bytes)
        if limit and max(contexts) > limit:
            what = f"{name}, no text beyond {limit:,} tokens, where its positions end (speed is measured)"
            self.left_out.append(what)
        return seconds

    def train(self, name: str, steps: int, batch: int, tokens: int, held_out: int) -> float:
        """Steps of a fine-tuning with adapters, and a look at so many held-out examples ten times."""
        work = counting.training(name, tokens, batch, self.dtype, self.on.path, self.on.gpu)
        self._held(name, self.on.held(work.peak_bytes))
        looks = min(10, steps // 10)
        return steps * self.on.seconds(work) + looks * self.read(name, held_out * tokens, tokens, batch=10)

    def work(self, work: Work) -> float:
        self.peak_bytes = max(self.peak_bytes, self.on.held(work.peak_bytes))
        return self.on.seconds(work)

    def _held(self, name: str, beside: int) -> None:
        self.peak_bytes = max(self.peak_bytes, size(name, self.dtype, self.bits).weight_bytes + beside)

    # ---- what a reader sees --------------------------------------------------------------------------------------

    def __str__(self) -> str:
        width = max(map(len, self.parts)) + 2
        lines = [f"Lab {self.lab} on {self.on.name}, {self.on.source}:"]
        lines += [f"  {name:<{width}}{duration(seconds):>8}" for name, seconds in self.parts.items()]
        lines += [f"  {'together':<{width}}{duration(self.seconds):>8}"]
        lines += [f"memory at its peak: {human(self.peak_bytes)} of {human(self.on.memory_bytes)}"]
        for name in self.models:
            most = forecast.longest(name, self.on, self.dtype, self.bits)
            lines += [f"longest context that fits: {name}, {most:,} tokens"]
        lines += [f"left out: {what}" for what in self.left_out] or ["left out: nothing"]
        lines += ["A forecast is meant to be right within a factor of 2."]
        if chunked := [name for name in self.models if hasattr(published_config(name), "chunk_size")]:
            lines += [f"A prefill of {' and '.join(chunked)} may take longer: on a CPU it took up to 6 times as long."]
        return "\n".join(lines)

    def watch(self) -> "Plan":
        """Time the lab's cells from here on, for `against_the_clock`."""
        Clock.start(self.lab)
        return self

    def against_the_clock(self) -> str:
        """Each part as it was forecast and as its cells took, as text; parts whose cells have not run have a dash."""
        took = Clock.running.seconds if Clock.running and Clock.running.lab == self.lab else {}
        rows = []
        for name, seconds in self.parts.items():
            measured = sum(took.get(cell, 0.0) for cell in self.cells[name])
            known = bool(self.cells[name]) and all(cell in took for cell in self.cells[name])
            ratio = f"{measured / seconds:.1f}" if known and seconds else "-"
            rows.append((name, duration(seconds), duration(measured) if known else "-", ratio))
        columns = ["part", "forecast", "measured", "measured over forecast"]
        return pd.DataFrame(rows, columns=columns).to_string(index=False)

    def against(self, rows: pd.DataFrame) -> str:
        """The points of a sweep, measured over forecast: `rows` has a model's name beside GenerationTiming's fields."""
        table = []
        for row in rows.itertuples():
            e = forecast.generation(row.model, int(row.tokens), self.on, int(row.batch), self.dtype)
            pairs = (
                (row.time_to_first_token, e.prefill_seconds),
                (row.decode_seconds, e.decode_seconds),
                (row.peak_bytes, e.peak_bytes),
            )
            table.append((row.model, int(row.tokens), int(row.batch), *(measured / value for measured, value in pairs)))
        columns = ["model", "tokens", "batch", "prefill", "decode", "peak memory"]
        text = pd.DataFrame(table, columns=columns).round(2).to_string(index=False)
        return f"measured over forecast\n{text}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


# ---- the labs ---------------------------------------------------------------------------------------------------


def lab(number: str, settings: dict, weights: str = "trained", bits: int = 16, on: Machine | None = None) -> Plan:
    """The plan of a lab with these settings (those of `settings` in its notebook, at scale full).

    Args:
        bits: as in `models.load`.
        on: the machine; default this one, which is measured for it.
    """
    dtype = settings.get("dtype", torch.float32 if number == "2.4.2" else torch.bfloat16)
    plan = Plan(number, on or forecast.machine(dtype=dtype), dtype, weights, bits)
    LABS[number](plan, SimpleNamespace(**settings))
    plan.part("everything else", rest(number))
    return plan


def default_settings(number: str, scale: str = "full") -> dict:
    """The settings of a lab at a scale, from the statement of its notebook that assigns them.

    Raises: BadInput where the cells that say them are gone or do not run.
    """
    cells = {cell.id: cell.source for cell in notebooks.read(number).cells}
    scope = {"torch": torch}
    try:
        exec(cells["parameters"], scope)
        for statement in ast.parse(cells["settings"]).body:
            if isinstance(statement, (ast.Assign, ast.AugAssign)):
                exec(compile(ast.Module([statement], []), number, "exec"), scope)
            if "SETTINGS" in scope:
                break
        return scope["SETTINGS"][scale]
    except Exception as problem:  # whatever a student wrote there
        path = notebooks.path_of(number)
        raise BadInput(
            f"The settings of lab {number} cannot be read from its cells `parameters` and `settings` "
            f"({type(problem).__name__}: {problem}): keep your file under another name, then take the course's own "
            f"again: {notebooks.remedy(path)}."
        ) from None


def needs(number: str, scale: str) -> str:
    """The row of a lab's table of needs for this scale."""
    text = "\n".join(cell.source for cell in notebooks.read(number).cells[:3])
    row = re.search(rf"^\| *`?{scale}`? *\|(.*)$", text, re.MULTILINE)
    return row[1] if row else ""


def rest(number: str) -> float:
    """Seconds of what does not change with the scale, above all small models that train live: all of scale tiny."""
    found = re.search(r"about (an?|[\d.]+) minutes?", needs(number, "tiny"))
    return 60 * float(found[1] if found[1][0].isdigit() else 1) if found else 0.0


def mamba_inference(plan: Plan, s) -> None:
    mamba, transformer = s.pair.values()
    contexts, middle = sorted(s.contexts), sorted(s.contexts)[:3][-1]
    plan.part("loading", plan.load(1, mamba), "load")
    library = "kernel" if plan.on.path == "kernel" else "reference"
    paths = [plan.read(mamba, 6 * 1024, 1024, path=path) for path in (library, plan.on.path)]
    plan.part("two scans, 1,024 tokens", sum(paths), "reference-against-scan")
    again = plan.load(1, mamba, transformer)
    swept = [plan.sweep(name, contexts, **s.timing) for name in s.pair.values()]
    plan.part("the sweep of both models", again + sum(swept), "sweep")
    counted = [plan.read(name, tokens, tokens) for name in s.pair.values() for tokens in contexts[:3:2]]
    plan.part("counting a step", again + sum(counted), "counted")
    if plan.weights == "trained":
        plan.part("a document", plan.read(mamba, 12 * middle, middle), "document-speed")
    steps = [plan.write(name, 256, 43) for name in s.pair.values()]
    plan.part("profiles of a step", again + sum(steps), "operations-profiles")


def mamba_architecture(plan: Plan, s) -> None:
    plan.part("loading", plan.load(1, *s.pair.values()))
    works = [six_scans(steps, s.width, plan.on) for steps in s.lengths]
    seconds = sum(4 * plan.work(work) for work in works)  # one to warm up, three that count
    plan.part("six scans over lengths", seconds, "measure-scans")


def moe_exploration(plan: Plan, s) -> None:
    name = getattr(s, "model", s.models[0])
    texts = [text for some in data.EXPERT_PROMPTS.values() for text in some]
    plan.part("loading", plan.load(1, name), "load")
    tokens, usual = len("".join(texts)) / TOKEN, len("".join(texts)) // len(texts) // TOKEN
    once = plan.read(name, 1.3 * tokens, max(16, usual), batch=16)  # a batch is padded to its longest
    plan.part("routing the prompts", once, "route")
    plan.part("pushing a router, four times", 4 * once, "positive-control")
    plan.part("an untrained network and other texts", 4 * once)


def moe_router(plan: Plan, s) -> None:
    name = s.balanced
    config = published_config(name)
    k, E = config.num_experts_per_tok, counting.experts(config)
    tokens = len("".join(data.tiny_text("heldout").values())) / TOKEN / 3  # every third window
    once = plan.score(name, tokens, 256, batch=16)
    half = plan.score(name, tokens / 2, 256, batch=16)
    plan.part("loading", plan.load(1, name), "load")
    plan.part("loads of the experts", 3 * once, "loads", "balance-table", "shuffled")
    tried = {number for number in (1, 2, 3, 4, 8, E // 2, E, k) if number <= E}
    plan.part("other numbers of experts", sum(half * max(1, number / k) for number in tried), "by-k")
    plan.part("jitter", 6 * half, "jitter-sweep", "experts-at-random")


def architecture_comparison(plan: Plan, s) -> None:
    twins = list(s.zoo)[:2]
    trained = plan.weights == "trained"
    corpus = WIKITEXT if trained else len("".join(data.tiny_text("heldout").values()))
    story = s.story if trained else min(s.story, len(data.tiny_long_text()))
    passage = min(s.passage, story)
    longest = s.strides[0]
    at_once = max(1, evaluate.BATCH_TOKENS // longest)
    passes = sum(longest / stride for stride in s.strides) * passage / TOKEN
    strides = [plan.score(name, passes, longest, at_once) for name in twins]
    loaded = plan.load(1, twins[0]) + plan.load(1, *twins)
    plan.part("one passage, four strides", loaded + sum(strides), "story", "stride-sweep")
    judged = plan.load(1, *s.zoo)
    for name in s.zoo:
        judged += plan.score(name, 2 * corpus / TOKEN, s.window)  # windows overlap by half
        judged += plan.score(name, story / TOKEN, s.long_window)
    plan.part("quality of all models", judged, "quality-sweep")
    whole = story / TOKEN + 8 * s.long_window + 2 * passage / TOKEN
    read_on = plan.load(1, twins[0]) + plan.score(twins[0], whole, s.long_window)
    plan.part("a story read on", read_on, "carry", "carry-exact", "carry-course", "carry-dropped")
    priced = plan.load(1, *s.zoo, *s.siblings)
    for name in (*s.zoo, *s.siblings):
        priced += plan.sweep(name, s.contexts, **s.timing)
        for batch in s.batches[1:] if name in s.zoo else ():
            priced += plan.sweep(name, [min(s.contexts)], batch, **s.timing)
    plan.part("cost of all models", priced, "cost-sweep")


def mamba_finetuning(plan: Plan, s) -> None:
    mamba, transformer = s.pair.values()
    held_out = s.examples // 10
    train = partial(plan.train, batch=s.batch, tokens=EXAMPLE, held_out=held_out)
    answer = partial(plan.write, prompt=PROMPT, new=s.new_tokens, batch=min(100, held_out))
    plan.part("loading", plan.load(8, mamba) + plan.load(1, transformer))
    plan.part("answers before and after", 2 * answer(mamba), "before", "after")
    plan.part("training Mamba", train(mamba, s.steps), "train")
    plan.part("training its twin", train(transformer, s.steps), "train-twin")
    plan.part("answers of the twin", 2 * answer(transformer), "twin-before", "twin-after")
    short = s.short_steps
    stopped, left = short // 2 + 1, short - short // 3  # it goes on from the checkpoint before the stop
    plan.part("stopped and continued", train(mamba, short + stopped + left), "in-one-piece", "interrupted")
    plan.part("training with old text", train(mamba, s.steps), "train-replay")
    plan.part("what was forgotten", 3 * answer(mamba), "forgetting")
    full = max(size(name, torch.float32).weight_bytes for name in s.pair.values())
    plan.peak_bytes = max(plan.peak_bytes, 4 * full)  # the memory section: gradients and two moments beside weights


LABS = {
    "2.4.1": mamba_inference,
    "2.4.2": mamba_architecture,
    "2.4.3": moe_exploration,
    "2.4.4": moe_router,
    "2.4.5": architecture_comparison,
    "2.4.6": mamba_finetuning,
}


def six_scans(steps: int, width: int, on: Machine) -> Work:
    """Each scan of lab 2.4.2 once over so many steps. A kernel in the library's place takes next to nothing."""
    its = notebooks.solution("2.4.2")
    doubling = _on_shapes(partial(_laid_out, its, _doubling), steps, width, on.gpu)
    return doubling + counting.through(_linear_scans(width, on.gpu, on.path != "kernel"), steps)


@cache
def _linear_scans(width: int, gpu: bool, library: bool) -> dict[int, Work]:
    """The work of the scans that are linear in the steps, together, at two lengths."""
    from transformers.models.mamba import modeling_mamba

    its = notebooks.solution("2.4.2")
    ways = [partial(_laid_out, its, its.sequential_scan), partial(_laid_out, its, its.chunked_scan), its.fused_scan]
    ways.append(partial(_batched, scan.selective_scan))
    if library:
        ways.append(partial(_batched, kernels.chosen(modeling_mamba.mamba_selective_scan, gpu=False)))
    lengths = counting.LENGTHS[:2]
    return {steps: sum((_on_shapes(way, steps, width, gpu) for way in ways), Work()) for steps in lengths}


def _on_shapes(way, steps: int, width: int, gpu: bool, states: int = 16) -> Work:
    """The work of one of the lab's scans: u and delta (steps, width), A (width, states), B and C (steps, states), D."""
    sizes = (steps, width), (steps, width), (width, states), (steps, states), (steps, states), (width,)
    shapes = counting.Shapes()
    with torch.inference_mode(), counting.running("mamba", "reference", gpu, shapes), shapes:
        way(*(torch.empty(shape, device="meta") for shape in sizes))
    return shapes.taken()


def _laid_out(its, scan_of_states, u, delta, A, B, C, D):
    A_bar, B_bar = its.discretise(delta, A, B)
    states = scan_of_states(A_bar, B_bar * u.unsqueeze(2))
    return (states @ C.unsqueeze(2)).squeeze(2) + D * u


def _doubling(decay, inputs):
    shift = 1
    while shift < len(inputs):
        both_inputs = decay[shift:] * inputs[:-shift] + inputs[shift:]
        both_decays = decay[shift:] * decay[:-shift]
        decay, inputs = torch.cat([decay[:shift], both_decays]), torch.cat([inputs[:shift], both_inputs])
        shift *= 2
    return inputs


def _batched(way, u, delta, A, B, C, D):
    u, delta, B, C = (x.T.unsqueeze(0) for x in (u, delta, B, C))
    return way(u, delta, A, B, C, D=D)


# ---- the clock --------------------------------------------------------------------------------------------------


class Clock:
    """Seconds of each cell of a lab, by its id, from `start` on; outside a notebook nothing is timed."""

    running: "Clock | None" = None

    def __init__(self, lab: str):
        self.lab, self.seconds = lab, {}
        self._ids = {cell.source.strip(): cell.id for cell in notebooks.read(lab).cells if cell.cell_type == "code"}
        self._id, self._begun, self._taken, self.shell = None, 0.0, 0, None

    @classmethod
    def start(cls, lab: str) -> None:
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is None:
            return
        if cls.running:
            shell.events.unregister("pre_run_cell", cls.running.begin)
            shell.events.unregister("post_run_cell", cls.running.end)
        cls.running = cls(lab)
        cls.running.shell = shell
        shell.events.register("pre_run_cell", cls.running.begin)
        shell.events.register("post_run_cell", cls.running.end)

    def begin(self, info) -> None:
        self._id, self._begun = self._ids.get(info.raw_cell.strip()), time.perf_counter()
        self._taken = len(results.taken)

    def end(self, result) -> None:
        # Not result.success: a cell that was not run, for want of a model, counts as one that stops no lab.
        # What was taken over from before a restart says nothing of how long it takes.
        if self._id and self.shell.last_execution_succeeded and len(results.taken) == self._taken:
            self.seconds[self._id] = time.perf_counter() - self._begun
        self._id = None
