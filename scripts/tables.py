"""Writes the tables of data/README.md (`make tables`): every number comes from the catalogue or from `models.size`.

The text around them is written by hand; what stands between `<!-- table: name -->` and `<!-- end -->` is made here.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from shared import files, models
from shared.files import DATA
from shared.hub.catalogue import DATASETS, MODELS
from shared.machine import guard
from shared.models import fitting
from shared.models.cards import TINY, published_config
from shared.models.sizes import download_bytes
from shared.notebooks import commands
from shared.units import human

FILE = DATA / "README.md"
CONTEXTS = (4096, 16384, 65536, 100_000)
# Bytes available on idle DGX Sparks, from reports: Syllo/nvtop issue 449, unslothai/unsloth pull request 10705.
IDLE = (121_300_000_000, 124_400_000_000)
# The layers of Nemotron Nano 9B v2, hybrid_override_pattern of its config.json: Mamba-2, MLP, attention.
NANO_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
PAIRS = (("mamba-130m", "pythia-160m"), ("mamba-1.4b", "pythia-1.4b"), ("mamba-2.8b", "pythia-2.8b"))


def table(head: Iterable[str], rows: Iterable[Iterable[str]], others: str = "---:") -> str:
    """A Markdown table; `others` aligns all columns but the first, numbers to the right."""
    head = list(head)
    rule = ["---", *[others] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, rule, *map(list, rows)])


def source_rows(sources: dict) -> Iterable[tuple[str, ...]]:
    for name, source in sources.items():
        labs = ", ".join(source.labs) or "by a parameter"
        yield (
            f"`{name}`",
            f"{source.repo} @ {source.revision[:10]}",
            source.licence,
            human(download_bytes(name)),
            labs,
        )


def size_rows() -> Iterable[tuple[str, ...]]:
    for name in (*MODELS, *TINY):
        size = models.size(name)
        eight = human(models.size(name, bits=8).weight_bytes) if size.active < size.total and name in MODELS else ""
        kv = f"{size.kv_bytes_per_token:,}" if size.kv_bytes_per_token else ""
        state = human(size.state_bytes) if size.state_bytes else ""
        yield f"`{name}`", f"{size.total:,}", f"{size.active:,}", human(size.weight_bytes), eight, kv, state


def context_rows() -> Iterable[tuple[str, ...]]:
    for mamba, twin in PAIRS:
        a, b = models.size(mamba), models.size(twin)
        positions = published_config(twin).max_position_embeddings
        yield f"`{twin}`: cache", *(human(b.kv_bytes_per_token * tokens) for tokens in CONTEXTS), f"{positions:,}"
        yield f"`{mamba}`: state", *(human(a.state_bytes) for _ in CONTEXTS), "no limit"


def spark() -> str:
    """What the two largest models need on a DGX Spark, and whether it has that, in a sentence."""
    names = ("jamba-v0.1", "mixtral-8x7b")
    kept = guard.kept(guard.SPARK)
    loading = {bits: [_while_loading(name, bits) for name in names] for bits in (16, 8)}
    jamba, mixtral = loading[16]
    return (
        f"- **In bf16 Jamba does not fit on one DGX Spark, and Mixtral only where next to nothing else runs.** While "
        f"they load they need {_gb(jamba)} and {_gb(mixtral)}, and {_gb(kept)} of a Spark's {_gb(guard.SPARK)} stay "
        f"free. So {_gb(jamba + kept)} and {_gb(mixtral + kept)} have to be available, where owners report "
        f"{_gb(IDLE[0])} to {_gb(IDLE[1])} on an idle machine, and every notebook's kernel takes of it. With 8-bit "
        f"experts they load in {_gb(loading[8][0])} and {_gb(loading[8][1])}, and fit."
    )


def _while_loading(name: str, bits: int) -> int:
    return models.size(name, bits=bits).weight_bytes + fitting.in_flight(name, bits=bits)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def misleading() -> str:
    """The sentences on the table that stands in many places, with its figures taken apart."""
    c, kept = published_config("mamba-1.4b"), models.size("mamba-1.4b").state_bytes
    halves = c.num_hidden_layers * c.intermediate_size * (c.state_size + c.conv_kernel) * 2
    mixtral, twin, mamba = (models.size(name) for name in ("mixtral-8x7b", "pythia-2.8b", "mamba-2.8b"))
    deepseek = models.size("deepseek-moe-16b")
    return (
        f'- "512 MB of cache at 4K tokens beside 8 MB of state" sets two sizes of model side by side: '
        f"{mixtral.kv_bytes_per_token // 1024} KiB per token is Mixtral (or an 8B model with grouped queries), and "
        f"{human(halves)} is Mamba-1.4B with everything counted in 16 bits. transformers keeps the recurrent state in "
        f"float32, so it is {human(kept)}. The twins of this course: {human(twin.kv_bytes_per_token * 4096)} "
        f"(pythia-2.8b at 4,096 tokens) beside {human(mamba.state_bytes)} (mamba-2.8b at any length).\n"
        f'- "DeepSeekMoE: 2.5B active" is {deepseek.active / 1e9:.2f}B; "Mixtral: 45B, 90 GB" is '
        f"{mixtral.total / 1e9:.1f}B and {human(mixtral.weight_bytes)}, with {mixtral.active / 1e9:.1f}B active.\n"
        "- Total parameters decide the memory, active ones the arithmetic of one token: a mixture saves the second and "
        f"not the first.\n{_mixed_up()}"
    )


def _mixed_up() -> str:
    """The sentences on models of today whose kinds of layers are mixed up in public."""
    qwen, nemotron = published_config("qwen3.5-35b-a3b"), published_config("nemotron-3-nano-30b-a3b")
    linear, layers = qwen.layer_types.count("linear_attention"), len(qwen.layer_types)
    attention, mamba = (nemotron.layers_block_type.count(kind) for kind in ("full_attention", "linear_attention"))
    oss, kinds = models.size("gpt-oss-120b"), published_config("gpt-oss-120b").layer_types
    (window, each), whole = oss.windows[0], oss.kv_bytes_per_token + sum(each for _, each in oss.windows)
    return (
        f'- "Qwen3.6-35B-A3B is a pure MoE": of Qwen3.5-35B-A3B, the one of that size before it, {linear} '
        f"of {layers} layers are Gated DeltaNet, and carry a state.\n"
        f'- "Nemotron 3 Nano is 75 % linear and 25 % attention": {attention} of its {attention + mamba} mixers are '
        f"attention, {attention / (attention + mamba):.0%}.\n"
        f'- "{len(NANO_9B) - NANO_9B.count("*")} of {len(NANO_9B)} layers of Nemotron Nano 9B v2 are Mamba": '
        f"{NANO_9B.count('M')} are, {NANO_9B.count('-')} are MLPs, {NANO_9B.count('*')} attention.\n"
        f"- gpt-oss-120b's cache, counted as if each layer kept each token, is {whole:,} bytes a token. "
        f"{kinds.count('sliding_attention')} of its {len(kinds)} layers keep {window} tokens: it is "
        f"{oss.kv_bytes_per_token:,}, and {human(window * each)} once."
    )


def made() -> dict[str, str]:
    """Name of a table -> its Markdown."""
    source_head = ("name", "repository and revision", "licence", "download", "labs (scale full)")
    contexts = [f"{tokens:,} tokens" for tokens in CONTEXTS]
    return {
        "data sets": table(source_head, source_rows(DATASETS), "---"),
        "models": table(source_head, source_rows(MODELS), "---"),
        "sizes": table(
            ("name", "parameters", "active", "weights, bf16", "with 8-bit experts", "KV bytes per token", "state"),
            size_rows(),
        ),
        "context": table(("batch 1, bf16", *contexts, "positions"), context_rows()),
        "misleading": misleading(),
        "spark": spark(),
    }


def filled(text: str) -> str:
    """`text` with every table made anew. KeyError for a name that is not made here."""
    tables = made()
    pattern = re.compile(r"(<!-- table: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda found: f"{found[1]}{tables[found[2]]}\n{found[3]}", text)


@commands.program()
def main(file: Path = FILE) -> None:
    files.write(file, filled(file.read_text(encoding="utf-8")))


if __name__ == "__main__":
    sys.exit(main())
