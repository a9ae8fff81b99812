"""Get a model of the course into memory: check that it fits, load it or build it with random weights, give it back.

`load("mamba-2.8b")` takes the published weights from the Hugging Face hub or its cache, `load("tiny/mamba")` those that
ship with the course. Nothing falls back silently: what cannot be had is one sentence that says how to get it.
"""

import gc
import weakref
from contextlib import contextmanager
from pathlib import Path

import torch

from shared import files
from shared.errors import BadInput, CourseError, DamagedCheckpoint, Missing, NotEnoughMemory
from shared.hub.catalogue import Config
from shared.machine import guard, holders, kernels, meters, pool
from shared.models import checkpoints, streaming
from shared.models.cards import Card, card
from shared.models.fitting import fits_of
from shared.models.sizes import of_card, pick_dtype


def load(name: str, dtype: torch.dtype | str = torch.bfloat16, weights: str = "trained", device=None, bits: int = 16):
    """Load a model, in evaluation mode, after a check that it fits.

    What stays changed in the process: transformers knows DeepSeekMoE and chooses Mamba's kernels by device
    (`kernels.by_device`); on unified memory torch is capped and the watchdog runs (`guard.protect`).

    Args:
        name: one of `MODELS` or `TINY`, or a shape without weights: of `CONFIGS`, or a narrow one (`cards.NARROW`).
        dtype: of the weights, or its name. Mamba's published configs say float32; the course says bfloat16.
        weights: "trained"; or "random": the real shapes without a download, right for speed and memory, meaningless
            for text.
        device: default the GPU if there is one, else the CPU.
        bits: 8 keeps the routed experts, which are most of a mixture's weights, as int8 with a scale a row. They are
            then run one by one: half the memory, not more speed. Only for trained weights, and torchao has to be there.

    Returns:
        (model, tokenizer). With random weights the tokenizer is None where the cache has none.

    Raises:
        BadInput, NotEnoughMemory, Missing, DiskFull, DamagedCheckpoint: one sentence each.
    """
    if weights not in ("trained", "random"):
        raise BadInput(f'The weights are "trained" or "random", not {weights!r}.')
    asked = card(name)
    if isinstance(asked.source, Config) and weights == "trained":
        raise BadInput(
            f'The course has the config of {name} alone: load it with weights="random", or ask for its size.'
        )
    device, dtype = pool.present_device(device), pick_dtype(dtype)
    if not (fit := fits_of(asked, 0, device, dtype, weights, bits)):
        raise NotEnoughMemory(fit.reason[:-1] + (holders.said() if pool.is_unified(device) else "") + ".")
    quantization = _eight_bit_experts(weights) if bits == 8 else {}
    guard.protect(device)
    if weights == "random":
        model, folder = from_config(asked.config, dtype, device), checkpoints.cached(asked)
    else:
        folder = checkpoints.folder(asked)
        model = from_folder(folder, dtype, device, **quantization)
        if (found := sum(p.numel() for p in model.parameters())) != (total := of_card(asked).total):
            _refuse(folder, f"a checkpoint of {found:,} parameters", f"{name} has {total:,}")
    return model, _tokenizer(asked, folder, needed=weights == "trained")


_loaded = weakref.WeakSet()


def unload() -> int:
    """Free every model that was made here, also where a variable still names it; returns the bytes of weights.

    A notebook's kernel keeps its memory until it is shut down. The models cannot run after this, and say so: load them
    anew.
    """
    gc.collect()  # models that nothing names any more
    freed = sum(p.numel() * p.element_size() for model in _loaded for p in model.parameters() if not p.is_meta)
    for model in _loaded:
        model.to("meta").apply(lambda module: module.register_forward_pre_hook(_given_back))
    _loaded.clear()
    meters.Host().settle()
    torch.cuda.empty_cache()  # does nothing where CUDA was not used
    return freed


def _given_back(module, inputs) -> None:
    raise Missing("This model was given back by models.unload(): run the cell that loads it again.")


def from_config(config, dtype: torch.dtype, device):
    """A model with random weights, in evaluation mode, built where it is to stay and in `dtype`: no second copy."""
    from transformers import AutoModelForCausalLM

    kernels.by_device()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(0)
        return _registered(AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False))


# The fused weights of routed experts. Nemotron-H's have no gate, and so an up_proj of its own.
EIGHT_BIT = r".*\.experts\.(gate_up_proj|up_proj|down_proj)"


def _eight_bit_experts(weights: str) -> dict:
    """Options for from_pretrained that keep routed experts as int8.

    Experts are 3-D parameters and no Linear modules: quantisers that look for those (bitsandbytes, in 4 bits too) leave
    them as they are and say nothing (bitsandbytes issue 1849). torchao takes parameters by name.
    """
    if weights != "trained":
        raise BadInput('bits=8 is for trained weights: with weights="random" build the model in 16 bits.')
    try:
        from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig
    except ImportError:
        raise CourseError(
            '8-bit experts need torchao: `.venv/bin/python -m pip install -e ".[eight-bit]"` in the course\'s folder.'
        ) from None
    from transformers import TorchAoConfig

    experts = FqnToConfig({f"re:{EIGHT_BIT}": Int8WeightOnlyConfig()})
    # int8 tensors can be multiplied one expert at a time, not in one grouped call.
    return {"quantization_config": TorchAoConfig(experts), "experts_implementation": "eager"}


def from_folder(folder: Path, dtype: torch.dtype, device, **options):
    """The model of a checkpoint's folder, in evaluation mode; options are those of `from_pretrained`.

    Raises: DamagedCheckpoint where weights are missing, cut short, left over or of another shape.
    """
    from transformers import AutoModelForCausalLM

    kernels.by_device()
    checkpoints.check_config(folder)
    checkpoints.check_files(folder)
    unified = pool.is_unified(device)
    from_pretrained = streaming.from_pretrained if unified else AutoModelForCausalLM.from_pretrained
    with _quiet(bar=not folder.is_relative_to(files.DATA)):
        model, info = from_pretrained(
            folder,
            dtype=dtype,
            device_map={"": device} if device.type != "cpu" else None,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported here, all at once, instead of raised as a page of text
            **options,
        )
    for what, keys in info.items():
        if keys:
            first = sorted(map(str, keys))[0]
            raise DamagedCheckpoint(
                f"The weights in {folder} do not belong to the model in its config.json ({len(keys)} "
                f"{what.replace('_', ' ')}, the first {first}): {checkpoints.remedy(folder)}."
            )
    return _registered(model)


def _registered(model):
    """The model in evaluation mode, known to `unload`."""
    kernels.by_device(model)
    _loaded.add(model)
    return model.eval()


def _tokenizer(card: Card, folder: Path | None, needed: bool):
    """The tokenizer of a model; None where it is not needed and not there. Raises: DamagedCheckpoint."""
    if card.folder:
        folder = files.DATA / "tiny" / "tokenizer"
    missing = checkpoints.missing_tokenizer(folder) if folder else "its folder"
    if folder is None or (missing and not needed):
        return None
    if missing:
        raise DamagedCheckpoint(f"{missing} is missing: {checkpoints.remedy(folder)}.")
    config = card.config
    tokenizer = tokenizer_of(folder, config.model_type)
    # A tokenizer of another model would be taken without a word, and every token would mean something else.
    if not 0.9 * config.vocab_size <= len(tokenizer) <= config.vocab_size:
        _refuse(folder, f"a tokenizer of {len(tokenizer):,} tokens", f"{card.name} has {config.vocab_size:,}")
    return tokenizer


def _refuse(folder: Path, found: str, right: str) -> None:
    raise DamagedCheckpoint(f"In {folder} lies {found}, and {right}: {checkpoints.remedy(folder)}.")


def tiny_tokenizer():
    """The tokenizer of the tiny models. Where weights are random and nothing is downloaded, any one will do."""
    return tokenizer_of(files.DATA / "tiny" / "tokenizer")


def tokenizer_of(folder: Path, model_type: str = ""):
    """The tokenizer whose files lie in a folder. No code of a repository runs. Raises: DamagedCheckpoint."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # DeepSeekMoE's files name a class that splits text at other places than its tokenizer.json says. AutoTokenizer
    # takes the class that follows the file, after a page of advice to its authors; here it is asked for at once.
    kind = PreTrainedTokenizerFast if model_type == "deepseek" else AutoTokenizer
    # Published files ask to remove spaces before punctuation, which is wrong for these tokenizers: transformers does
    # not do it and prints a page about it at each decoding.
    try:
        return kind.from_pretrained(folder, trust_remote_code=False, clean_up_tokenization_spaces=False)
    except Exception as error:  # tokenizers raises Exception itself
        raise DamagedCheckpoint(f"The tokenizer in {folder} cannot be read: {checkpoints.remedy(folder)}.") from error


@contextmanager
def _quiet(bar: bool):
    """Without transformers' loading report, since what matters becomes one sentence; a bar only where it takes time."""
    from transformers.utils import logging

    before, bar_before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bar_before:
            logging.enable_progress_bar()
