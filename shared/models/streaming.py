"""Load a checkpoint tensor by tensor, and leave nothing of it in memory but the weights.

transformers maps the files and reads them with four threads. On a CPU that is ideal: the pages of the file are the
weights. Where the GPU takes its memory from the same pool they are a second copy of the model, and the experts of all
layers wait on the GPU until each layer's are stacked. Here each tensor is read when its turn comes, and the pages of
the file are given back at once. The rest, conversion included, is transformers' own.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shared.hub import store
from shared.machine import process

# Times the largest parameter: what is in flight beside the weights. Experts of a layer are there one by one, stacked by
# kind and fused; a tensor in fp32 is there on the host, on the device, and cast.
IN_FLIGHT = 4


def from_pretrained(folder: Path, **options):
    """What AutoModelForCausalLM.from_pretrained gives for a folder with safetensors; `options` are passed to it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if (folder / "generation_config.json").exists():
        options["generation_config"] = GenerationConfig.from_pretrained(folder)
    # Without the variable transformers asks for every tensor before it converts the first.
    with process.environment(HF_DEACTIVATE_ASYNC_LOAD="1"), tensors(folder) as found:
        kind = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        return kind.from_pretrained(None, config=config, state_dict=found, **options)


class _Tensor:
    """A tensor on disk. transformers reads it by slicing it, as it does with safetensors' own slices."""

    def __init__(self, opened, key: str, descriptor: int):
        self._read, self._descriptor = opened.get_slice(key), descriptor

    def __getitem__(self, where):
        tensor = self._read[where]
        if hasattr(os, "posix_fadvise"):  # not on a Mac
            # The whole file: the page cache keeps what it holds in one piece with a part that is still wanted.
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return tensor


@contextmanager
def tensors(folder: Path) -> Iterator[dict[str, _Tensor]]:
    """Name -> tensor of a checkpoint. Each is read when it is sliced inside the with, without a map of its file."""
    from safetensors import safe_open

    found = {}
    with ExitStack() as files:
        for path in store.checkpoint_files(folder):
            if path.suffix == ".safetensors":
                descriptor = files.enter_context(path.open("rb")).fileno()
                opened = files.enter_context(safe_open(path, "pt", backend="pread"))
                found |= {key: _Tensor(opened, key, descriptor) for key in opened.keys()}  # noqa: SIM118  no dict
        yield found
