"""Stand-ins of the published models: their configs with few narrow layers, random weights, their files' layout.

What a stand-in keeps: class, model_type, vocabulary, number of experts and experts per token, layer pattern, tied
weights, positions, the type of the published weights, shards where the published ones are several, and the fields that
point to remote code. What it changes stands in NARROW.
"""

import json
import shutil
from pathlib import Path

import torch

from rehearsal import tokenizers
from shared.files import DATA
from shared.hub.catalogue import CONFIGS, MODELS
from shared.models import cards

NARROW = {
    "mamba": {
        "hidden_size": 32, "d_model": 32, "intermediate_size": 64, "d_inner": 64,
        "num_hidden_layers": 2, "n_layer": 2, "time_step_rank": 4,
    },
    "gpt_neox": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    },
    "mixtral": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 1,
    },
    # The first layer is dense, as published.
    "deepseek": {
        "hidden_size": 32, "intermediate_size": 64, "moe_intermediate_size": 16, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
    "olmoe": {
        "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 4,
    },
    # One period of the pattern: attention in layer 4, experts in every second one.
    "jamba": {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 1, "mamba_dt_rank": 4,
    },
}  # fmt: skip
SHARDED = ("mamba-2.8b", "mixtral-8x7b", "deepseek-moe-16b", "olmoe-1b-7b", "jamba-v0.1")


def config(name: str) -> dict:
    """The fields of a stand-in's config.json: the published ones, with few narrow layers."""
    fields = json.loads((DATA / "models" / f"{name}.json").read_text())
    return fields | NARROW[fields["model_type"]]


def write_configs(folder: Path) -> None:
    """The configs of all stand-ins, one file each: what COURSE_MODELS names, so that every size is a stand-in's.

    Of models without weights the course builds the siblings of the twins, which are narrow here too, and only counts
    the others, as published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        (folder / f"{name}.json").write_text(json.dumps(config(name), indent=1))
    for name in CONFIGS:
        fields = json.loads((DATA / "models" / f"{name}.json").read_text()) | cards.NARROW.get(f"tiny/{name}", {})
        (folder / f"{name}.json").write_text(json.dumps(fields, indent=1))


def write(name: str, folder: Path) -> None:
    """A stand-in's repository: config, weights as safetensors, tokenizer, and the pickle that nobody may load."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    from shared.models import deepseek

    deepseek.register()
    folder.mkdir(parents=True, exist_ok=True)
    logging.disable_progress_bar()
    fields = config(name)
    known = {key: value for key, value in fields.items() if key != "auto_map"}
    torch.manual_seed(sorted(MODELS).index(name))
    dtype = getattr(torch, fields["torch_dtype"])
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**known), dtype=dtype, trust_remote_code=False)
    model.save_pretrained(folder, max_shard_size="3MB" if name in SHARDED else "5GB")
    (folder / "config.json").write_text(json.dumps(fields, indent=1))
    if "auto_map" in fields:
        for reference in fields["auto_map"].values():
            module = reference.split(".")[0]
            (folder / f"{module}.py").write_text("raise SystemExit('code of a repository was run')\n")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights as a pickle")
    (folder / "README.md").write_text(f"# Stand-in of {MODELS[name].repo}\n")
    tokenizers.write(fields["model_type"], folder)


def files(name: str, folder: Path) -> dict[str, bytes]:
    """Path -> content of a stand-in's repository, made in `folder` and removed from there."""
    write(name, folder)
    content = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    shutil.rmtree(folder)
    return content
