"""The page of `make size`: parameters by part, the cache over the context, and what of it fits this machine.

Of a model of the course (NAME), or of any config.json that transformers knows (CONFIG). Nothing is downloaded: a model
is built without bytes, and what a forward leaves in its cache is counted.
"""

import os
import re
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from shared.errors import BadInput
from shared.notebooks import commands
from shared.units import human  # nothing that imports torch: see `main`

CONTEXTS = (1, 4_096, 32_768, 131_072, 1_000_000)
WIDTH = 100
MILLION = 1_000_000

# The part of a model that a parameter belongs to, by the classes around it, from the inside out.
PARTS = (
    (
        "recurrent layers",
        r"Mixer2?$|MambaLayer$|DeltaNet$|DeltaAttention$|ShortConv|LightningAttention|RecurrentBlock$",
    ),
    ("attention", r"Attention$|Attn$"),
    ("routers", r"Router$|TopK|TopkRouter|Gate$"),
    ("MLPs", r"MLP$|Mlp$|FeedForward|FFN$|MoE$|MoeBlock$|Moe$|MoEBlock$"),
)


@dataclass(frozen=True)
class Part:
    """Parameters of a part of a model, and those of them that work for a token."""

    total: int = 0
    active: int = 0

    def __add__(self, other: "Part") -> "Part":
        return Part(self.total + other.total, self.active + other.active)


def part_of(key: str, classes: dict[str, str]) -> str:
    """The part that a parameter belongs to. `classes`: name of each module -> name of its class."""
    owners = key.split(".")[:-1]
    names = [classes[".".join(owners[:depth])] for depth in range(len(owners), 0, -1)]
    if names and names[0].endswith("Embedding"):
        return "embeddings"
    if re.search(r"shared_(expert|mlp)", key):
        return "shared experts"
    if re.match(r"(lm_head|embed_out|output)\b", key):
        return "output head"
    if names and "Norm" in names[0]:
        return "norms and others"
    if key.endswith((".gate.weight", ".router.weight")):
        return "routers"
    for name in names:
        for part, pattern in PARTS:
            if re.search(pattern, name):
                return part
    return "norms and others"


def parts(model, routed: dict, working: int) -> dict[str, Part]:
    """The parts of a model, the largest first. `working`: routed experts that work for a token."""
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    found: dict[str, Part] = {}
    for key, parameter in model.named_parameters():
        number = parameter.numel()
        if key in routed:
            part, active = "routed experts", number // parameter.shape[0] * working
        else:
            part, active = part_of(key, classes), number
        found[part] = found.get(part, Part()) + Part(number, active)
    return dict(sorted(found.items(), key=lambda item: -item[1].total))


def millions(number: int) -> str:
    return f"{number / MILLION:,.1f}"


def parameter_lines(found: dict[str, Part]) -> list[str]:
    total = sum(found.values(), Part())
    lines = [f"{'Parameters, millions':<24}{'all':>12}{'for a token':>14}{'share':>9}"]
    for name, part in [*found.items(), ("total", total)]:
        share = f"{part.active / part.total:.1%}"
        lines.append(f"  {name:<22}{millions(part.total):>12}{millions(part.active):>14}{share:>9}")
    return lines


def cache_lines(size) -> list[str]:
    """What the cache holds, and its bytes over the context."""
    lines = ["Cache of one sequence, for a model in 16 bits"]
    latent, index = size.latent_bytes_per_token, size.index_bytes_per_token
    growing = {
        "keys and values": size.kv_bytes_per_token - latent - index,
        "latent vectors (MLA)": latent,
        "an indexer's keys (sparse attention)": index,
    }
    lines += [f"  {number:,} bytes a token of {kind}" for kind, number in growing.items() if number]
    for kept, per_token in size.windows:
        lines.append(f"  {per_token:,} bytes for each of the last {kept:,} tokens (sliding window)")
    if size.state_bytes:
        conv = size.state_bytes - size.recurrent_bytes
        kinds = {"recurrent": size.recurrent_bytes, "of convolutions": conv}
        said = ", ".join(f"{number:,} bytes {kind}" for kind, number in kinds.items() if number)
        lines.append(f"  {human(size.state_bytes)} of state at any length: {said}")
        if size.kv_bytes_per_token:
            worth = size.state_bytes / size.kv_bytes_per_token
            lines.append(f"  the state takes what {worth:,.0f} tokens of its own keys and values take")
    lines.append(f"  {'tokens':<10}" + "".join(f"{tokens:>12,}" for tokens in CONTEXTS))
    lines.append(f"  {'cache':<10}" + "".join(f"{human(size.cache_bytes(tokens)):>12}" for tokens in CONTEXTS))
    return lines


def fit_lines(sizes: dict[int, object], free: int, kept: int, device) -> list[str]:
    """What of a model fits into `free` bytes. `sizes`: bits of its routed experts -> ModelSize."""
    beside = f", beside the {human(kept)} that stay free" if kept else ""
    lines = [f"This machine: {human(free)} for weights and cache on {device}{beside}; activations are not counted"]
    for bits, size in sizes.items():
        what = "in 16 bits" if bits == 16 else "with 8-bit experts"
        needed = f"  {what}: weights of {human(size.weight_bytes)}"
        room = free - size.weight_bytes
        if room < size.cache_bytes(1):
            lines.append(f"{needed} do not fit: {human(size.weight_bytes + size.cache_bytes(1) - free)} are missing")
            continue
        longest = longest_context(size, room)
        most = "any length of context" if longest is None else f"a context of {longest:,} tokens"
        lines.append(f"{needed} fit, with {most}")
    return lines


def longest_context(size, room: int) -> int | None:
    """The most tokens whose cache takes no more than `room` bytes; None where it stops growing before that."""
    full = size.state_bytes + sum(kept * per_token for kept, per_token in size.windows)
    if not size.kv_bytes_per_token and full <= room:
        return None
    low, high = 1, 1
    while size.cache_bytes(high) <= room:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if size.cache_bytes(middle) <= room:
            low = middle
        else:
            high = middle
    return low


@commands.program()
def main(arguments: list[str] | None = None) -> None:
    parser = commands.Parser(__doc__)
    parser.add_argument("--name", default="", help="a model of the course")
    parser.add_argument("--config", default="", help="the config.json of any model")
    options = parser.parse_args(arguments)
    if bool(options.name) == bool(options.config):
        raise BadInput("Name one model: NAME=mamba-2.8b of the course, or CONFIG=path/to/config.json of any other.")

    import torch
    from transformers.utils import logging

    from shared.hub.catalogue import CONFIGS, MODELS
    from shared.machine import guard, pool
    from shared.models import cards, sizes

    logging.set_verbosity_error()  # transformers' advice on configs and kernels, where nothing runs
    if options.name:
        config = cards.published_config(options.name)
        title = options.name
        if title in CONFIGS:
            source = f"{CONFIGS[title].repo}: {CONFIGS[title].source}"
        else:
            source = f"{MODELS[title].repo}: the config.json of the repository" if title in MODELS else "data/tiny"
    else:
        config, title = cards.read_config(Path(os.path.expanduser(options.config))), options.config
        source = f"a config.json of type {config.model_type}; the code that it may name (auto_map) is not run"
    size = sizes.of_config(config, torch.bfloat16, name=title)
    model = sizes.on_meta(config)
    routed = sizes.routed(model)
    found = parts(model, routed, sizes.top_k(config) if routed else 0)
    offered = {16: size}
    if any(len(shape) == 3 for shape in routed.values()):
        offered[8] = sizes.of_config(config, torch.bfloat16, 8, title)
    device = pool.present_device(None)
    lines = [
        f"{title}: {size.total:,} parameters, {size.active:,} of them for a token ({size.active / size.total:.1%})",
        textwrap.fill(f"from {source}", WIDTH, break_on_hyphens=False),
        "",
        *parameter_lines(found),
        "",
        *cache_lines(size),
        "",
        *fit_lines(offered, guard.budget(device), guard.reserve(device), device),
    ]
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
