"""What `make reference` measures: the points of each part, and one point on this machine. speed.py drives it."""

import itertools
from contextlib import nullcontext
from unittest.mock import patch

import torch

from shared import data, memory, models, notebooks, scan, timing
from shared.errors import CourseError
from shared.machine import guard, pool
from shared.models.cards import NARROW, SIBLINGS, published_config
from shared.units import human

SETTINGS = {
    "full": {
        "twins": ("mamba-2.8b", "pythia-2.8b"),
        "mixtures": ("olmoe-1b-7b", "deepseek-moe-16b"),
        "siblings": SIBLINGS,
        "large": "mixtral-8x7b",
        "hybrid": {"jamba-v0.1": (8, 16, 24, 32)},  # layers
        "contexts": [2**k for k in range(10, 18)],
        "batches": [2**k for k in range(7)],
        "short": 2048,  # tokens, where something else grows
        "scans": [2**k for k in range(9, 17)],
        "tuned": [(2, 256), (4, 512), (4, 2048), (16, 2048)],  # batch, tokens
        "dtype": torch.bfloat16,
        "timing": {"new_tokens": 48, "repeats": 5, "warmup": 2},
    },
    "tiny": {
        "twins": ("tiny/mamba", "tiny/transformer"),
        "mixtures": ("tiny/olmoe", "tiny/deepseek-moe"),
        "siblings": tuple(NARROW),
        "large": "tiny/olmoe",
        "hybrid": {"tiny/jamba": (3, 4)},
        "contexts": [256, 512, 1024, 2048, 4096],
        "batches": [1, 4, 16],
        "short": 256,
        "scans": [256, 512, 1024, 2048],
        "tuned": [(2, 256)],
        "dtype": torch.float32,
        "timing": {"new_tokens": 24, "repeats": 5, "warmup": 1},
    },
}
WAYS = ("full", "LoRA", "LoRA, checkpointing")


def plan(scale: str, on_gpu: bool) -> dict[str, list[dict]]:
    """The points of each part, in their order: of one kind the small ones first."""
    s = SETTINGS[scale]

    def generate(names, lengths, batches=(1,)) -> list[dict]:
        graphs = (False, True) if on_gpu else (False,)  # decode step by step, or as a CUDA graph
        grid = itertools.product(names, graphs, lengths, batches)
        return [dict(zip(("model", "graph", "tokens", "batch"), point, strict=True)) for point in grid]

    parts = {
        "context": generate(s["twins"], s["contexts"]),
        "batch": generate(s["twins"], [s["short"]], s["batches"]),
        "siblings": [point for point in generate(s["siblings"], s["contexts"]) if not point["graph"]],
        "mixtures": generate(s["mixtures"], [s["short"]], s["batches"][:3]),
        "large": generate([s["large"]], [s["short"]]),
        "hybrid": [
            {"model": name, "layers": n, "graph": False, "tokens": s["short"], "batch": 1}
            for name, layers in s["hybrid"].items()
            for n in layers
        ],
    }
    for path in ("kernel", "course", "reference") if on_gpu else ("course", "reference"):
        parts[f"scan-{path}"] = [{"model": s["twins"][0], "path": path, "tokens": t, "batch": 1} for t in s["scans"]]
    parts["tuning"] = [
        {"model": architecture, "way": way, "tokens": tokens, "batch": batch}
        for architecture in ("mamba", "transformer")
        for way in WAYS
        for batch, tokens in s["tuned"]
    ]
    return parts


# ---- one point --------------------------------------------------------------------------------------------------


class Bench:
    """What measures the points of a part; it keeps the model of the last one for the next."""

    def __init__(self, scale: str):
        self.scale, self.device, self.key, self.model, self.about = scale, pool.pick_device(), None, None, {}

    def row(self, point: dict, before: dict | None) -> dict:
        """The result of a point. `before`: the row of a smaller one of its kind; from it follows what it will take.

        Raises: CourseError where this machine cannot do it as it is: a model that does not fit, a kernel not there.
        """
        if "way" in point:  # its peak has the model in it, which does not grow with the batch
            before = None
        grown = point["tokens"] * point["batch"] / (before["tokens"] * before["batch"]) if before else 0
        if before and (expected := before["peak_bytes"] * grown) > guard.budget(self.device):
            return {"status": "out of memory", "expected_bytes": expected}
        seconds = timing.expected_seconds([before] if before else [], point["tokens"] * point["batch"])
        if seconds > timing.SLOW:
            return {"status": "slow", "expected_seconds": seconds}
        work = self.tune if "way" in point else self.prefill if "path" in point else self.generate
        try:
            return {"status": "ok"} | work(point, seconds)
        except (torch.OutOfMemoryError, MemoryError, guard.MemoryRanLow):
            torch.cuda.empty_cache()
            return {"status": "out of memory"}

    def load(self, name: str, layers: int | None = None) -> None:
        if self.key == (name, layers):
            return
        self.key = self.model = None
        models.unload()
        dtype = SETTINGS[self.scale]["dtype"]
        models.size(name)  # imports the code of the model, which is no part of it
        with memory.track(self.device) as tracked:
            if layers is None:
                self.model, _ = models.load(name, dtype, "random", self.device)
            else:
                self.model = first_layers(name, layers, dtype, self.device)
        with torch.inference_mode():  # what the first call of all makes for good is none of a point's peak
            models.forward(self.model, torch.ones((1, 16), dtype=torch.long, device=self.device))
        weights = sum(p.numel() * p.element_size() for p in self.model.parameters())
        self.about = {"weight_bytes": weights, "load_peak_bytes": tracked.peak_bytes}
        self.key = name, layers

    def ids(self, point: dict) -> torch.Tensor:
        one = data.random_tokens(self.model.config.vocab_size, [point["tokens"]])[point["tokens"]]
        return one.expand(point["batch"], -1).to(self.device)

    def generate(self, point: dict, seconds: float) -> dict:
        """Prefill and decode."""
        self.load(point["model"], point.get("layers"))
        options = SETTINGS[self.scale]["timing"] | timing.long_point(seconds)
        with scan.in_transformers():
            path = models.path(self.model)
            timed = timing.generation(self.model, self.ids(point), beyond_limit=True, graph=point["graph"], **options)
        return {"path": path} | self.about | vars(timed)

    def prefill(self, point: dict, seconds: float) -> dict:
        """A prefill alone, on one path of the scan."""
        self.load(point["model"])
        ids = self.ids(point)
        with torch.inference_mode(), nullcontext() if point["path"] == "reference" else scan.in_transformers():
            if (path := models.path(self.model)) != point["path"]:
                raise CourseError(f"the {path} would run; `make kernels` builds the kernel")
            with memory.track(self.device) as tracked:
                models.forward(self.model, ids)
            times = timing.measure(lambda: models.forward(self.model, ids), self.device, warmup=0, repeats=3)
        names = [f"time_to_first_token{quartile}" for quartile in ("_q1", "", "_q3")]
        timed = dict(zip(names, timing.quartiles(times), strict=True))
        return self.about | {"repeats": len(times), "peak_bytes": tracked.peak_bytes} | timed

    def tune(self, point: dict, seconds: float) -> dict:
        """Two steps of a fine-tuning with AdamW: their peak with the model in it, which is made anew."""
        from shared.kits import finetune  # with Trainer and peft, which no other part waits for

        if self.key != "tuned":
            self.key = "tuned"
            self.tune(point | {"tokens": 16, "batch": 1}, 0)  # what the first of all makes for good is none of a peak
        models.unload()
        with finetune.freed_at_once(), memory.track(self.device) as tracked:
            model = finetune.for_memory(point["model"], self.scale, full=point["way"] == "full")
            if point["way"] != "full":
                model = notebooks.solution("2.4.6").adapt(model, 8)
            if "checkpointing" in point["way"]:
                model.activation_checkpointing_enable()
            trained = list(finetune.trainable(model).values())
            optimizer = torch.optim.AdamW(trained, lr=1e-4)
            ids = torch.randint(100, 1000, (point["batch"], point["tokens"]), device=model.device)
            # The fused kernel takes raw weights past the adapters of x_proj: lab 2.4.6 switches it off for this.
            with scan.in_transformers(), patch("transformers.models.mamba.modeling_mamba.mamba_inner_fn", no_fused):
                for _ in range(2):  # the second meets the moments that the first has made
                    model.train()(input_ids=ids, labels=ids, use_cache=False).loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
        counts = {"total": sum(p.numel() for p in model.parameters()), "trained": sum(p.numel() for p in trained)}
        return counts | {"peak_bytes": tracked.peak_bytes}


def no_fused(*arguments, **options) -> None:
    return None


def first_layers(name: str, layers: int, dtype: torch.dtype, device: torch.device):
    """A model of published shapes, cut after so many layers. Raises: NotEnoughMemory."""
    from transformers import AutoModelForCausalLM

    config = published_config(name)
    config.num_hidden_layers = layers
    with torch.device("meta"):
        shaped = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        needed = sum(p.numel() for p in shaped.parameters()) * dtype.itemsize
    if needed > (free := guard.budget(device)):
        have = f"{human(needed)} and {human(free)} are available"
        raise models.NotEnoughMemory(f"{name} with {layers} layers needs {have}")
    guard.protect(device)
    return models.from_config(config, dtype, device)
