"""What the course can fetch: each published model and data set with its repository, pinned revision and licence.

A revision is a commit: what it names cannot change, so what was tested is what is loaded. Files are fetched by pattern:
weights as safetensors only (a pickle runs code when it is read), and never a `.py`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """One model or data set on the Hugging Face hub.

    splits: name -> patterns of its files; the first is what the labs read. labs: that use it at scale full.
    config: of a data set's repository. size: bytes of a data set's first split as the hub lists it; that of a model is
    computed from its config.
    """

    kind: str  # "model" or "dataset", as the hub calls them
    repo: str
    revision: str
    licence: str
    labs: tuple[str, ...]
    splits: dict[str, tuple[str, ...]]
    config: str = "default"
    size: int = 0

    @property
    def patterns(self) -> list[str]:
        """Every pattern of every split: what belongs to this source, and nothing else of its repository."""
        return [pattern for files in self.splits.values() for pattern in files]


def _model(repo: str, revision: str, *labs: str, licence: str = "Apache-2.0") -> Source:
    # Some repositories hold the same weights a second time, in other formats.
    files = ("*.json", "model*.safetensors", "tokenizer*")
    return Source("model", repo, revision, licence, labs, {"weights": files})


def _wikitext(version: str, train_parts: int, *labs: str) -> Source:
    config, one = f"wikitext-{version}-raw-v1", "00000-of-00001"
    train = tuple(f"{config}/train-{part:05d}-of-{train_parts:05d}.parquet" for part in range(train_parts))
    files = {split: (f"{config}/{split}-{one}.parquet",) for split in ("test", "validation")}
    revision, licence = "b08601e04326c79dfdd32d625aee71d232d685c3", "CC BY-SA 3.0, GFDL"
    # Both versions have the same test articles, in files of the same size: "103" means more training text.
    return Source("dataset", "Salesforce/wikitext", revision, licence, labs, {**files, "train": train}, config, 732_610)


MODELS = {
    "mamba-130m": _model("state-spaces/mamba-130m-hf", "1e76775f628fbf1350fbe4dbb3d971ba64af25a1", "2.4.2"),
    "mamba-1.4b": _model("state-spaces/mamba-1.4b-hf", "6e46eae61c27280517feef46f536d16b91076f08", "2.4.6"),
    "mamba-2.8b": _model("state-spaces/mamba-2.8b-hf", "96c48e0292b63f5346b6d30061af2551f7101e26", "2.4.1", "2.4.5"),
    "pythia-160m": _model("EleutherAI/pythia-160m", "50f5173d932e8e61f858120bcb800b97af589f46", "2.4.2"),
    "pythia-1.4b": _model("EleutherAI/pythia-1.4b", "fedc38a16eea3bd36a96b906d78d11d2ce18ed79", "2.4.6"),
    "pythia-2.8b": _model("EleutherAI/pythia-2.8b", "2a259cdd96a4beb1cdf467512e3904197345f6a9", "2.4.1", "2.4.5"),
    "mixtral-8x7b": _model("mistralai/Mixtral-8x7B-v0.1", "fc7ac94680e38d7348cfa806e51218e6273104b0"),
    "deepseek-moe-16b": _model(
        "deepseek-ai/deepseek-moe-16b-base",
        "521d2bc4fb69a3f3ae565310fcc3b65f97af2580",
        licence="DeepSeek Model License",
    ),
    "olmoe-1b-7b": _model(
        "allenai/OLMoE-1B-7B-0924", "6d84c48581ece794365f2b8e9cfb043c68ade9c5", "2.4.3", "2.4.4", "2.4.5"
    ),
    "jamba-v0.1": _model("ai21labs/Jamba-v0.1", "9efd11575ba791d9e3d25d4c8b670e78506b2df7"),
}
DATASETS = {
    "wikitext-2": _wikitext("2", 1, "2.4.5", "2.4.6"),
    "wikitext-103": _wikitext("103", 2, "2.4.5"),
    "pg19": Source(
        "dataset",
        "emozilla/pg19-test",
        "c5e39bf32e33f9111323aa68d7d9000d22722035",
        "Apache-2.0; the books are in the public domain",
        ("2.4.1", "2.4.5"),
        {"test": ("data/test-00000-of-00001-29a571947c0b5ccc.parquet",)},
        size=24_874_679,
    ),
    "alpaca": Source(
        "dataset",
        "tatsu-lab/alpaca",
        "dce01c9b08f87459cf36a430d809084718273017",
        "CC BY-NC 4.0",
        ("2.4.6",),
        {"train": ("data/train-00000-of-00001-a09b74b3ef9c3b56.parquet",)},
        size=24_246_638,
    ),
}
SOURCES = {**MODELS, **DATASETS}


@dataclass(frozen=True)
class Config:
    """A published model of which the course has the config alone, in data/models: its size, and nothing to download.

    source: where the numbers come from.
    """

    repo: str
    source: str


QUOTED = "the repository's config.json as public code quotes it, two copies or more, the fields that decide sizes"
CONFIGS = {
    "mamba2-2.7b": Config(
        "state-spaces/mamba2-2.7b",
        "the repository's config.json (width 2560, 64 layers, a vocabulary of 50,277 padded to 50,288) and the "
        "defaults of the mamba-ssm package that it leaves in place, under transformers' names",
    ),
    "mamba2attn-2.7b": Config(
        "state-spaces/mamba2attn-2.7b",
        "a shape: the repository's config.json (58 Mamba-2 layers, attention in layers 9, 18, 27, 36, 45 and 56 with "
        "30 heads of 128) in transformers' Nemotron-H without its MLPs, whose attention has no convolution and no "
        "rotary positions, and whose output head is its own",
    ),
    "transformerpp-2.7b": Config(
        "state-spaces/transformerpp-2.7b",
        "a shape: 32 layers of width 2560 in transformers' Llama, with the width of the MLP by mamba-ssm's rule (8/3 "
        "of the model's, up to a multiple of 128)",
    ),
    "nemotron-3-nano-30b-a3b": Config("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16", QUOTED),
    "granite-4.0-h-tiny": Config("ibm-granite/granite-4.0-h-tiny", QUOTED),
    "granite-4.0-h-small": Config("ibm-granite/granite-4.0-h-small", QUOTED),
    "qwen3.5-35b-a3b": Config("Qwen/Qwen3.5-35B-A3B", f"{QUOTED}; the text model alone, without its vision tower"),
    "qwen3.5-0.8b": Config("Qwen/Qwen3.5-0.8B", f"{QUOTED}; the text model alone, without its vision tower"),
    "qwen3-30b-a3b": Config("Qwen/Qwen3-30B-A3B", QUOTED),
    "qwen3-next-80b-a3b": Config("Qwen/Qwen3-Next-80B-A3B-Instruct", QUOTED),
    "kimi-linear-48b-a3b": Config("moonshotai/Kimi-Linear-48B-A3B-Instruct", QUOTED),
    "gpt-oss-20b": Config(
        "openai/gpt-oss-20b", f"{QUOTED}; counted in 16 bits, where the repository has 4 for experts"
    ),
    "gpt-oss-120b": Config(
        "openai/gpt-oss-120b", f"{QUOTED}; counted in 16 bits, where the repository has 4 for experts"
    ),
    "lfm2-8b-a1b": Config("LiquidAI/LFM2-8B-A1B", QUOTED),
}
