"""Tokenizers of the published classes, with the published special tokens and numbers of tokens.

The merges are learned from the course's own text, some thousands of them; the rest of the vocabulary is filled with
entries that no text reaches. Special tokens are as published: Mamba's and Pythia's begin, end and unknown token is one
and the same, and neither Pythia nor Mixtral has a token for padding.
"""

import functools
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as kinds

from shared import data

MERGES = 3000
END = "<|endoftext|>"
NEOX_SPACES = [" " * n for n in range(24, 1, -1)]  # runs of spaces, the last 23 tokens of GPT-NeoX's vocabulary


@functools.cache
def _learned(byte_level: bool) -> tuple[list[str], list[list[str]]]:
    """(pieces, merges) of byte pair encoding on the course's text, on bytes or on words that begin with ▁."""
    tokenizer = Tokenizer(kinds.BPE())
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        alphabet = []
    trainer = trainers.BpeTrainer(vocab_size=MERGES, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(data.tiny_text("train").values(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return sorted(model["vocab"], key=model["vocab"].get), model["merges"]


def _vocabulary(first: list[str], pieces: list[str], size: int) -> dict[str, int]:
    """Token -> id: special tokens first, then the pieces, then entries that no merge makes, up to `size`."""
    tokens = [*first, *pieces]
    tokens += [f"unreached{n}" for n in range(size - len(tokens))]
    return {token: number for number, token in enumerate(tokens)}


def _byte_level(first: list[str], size: int, last: list[str], special: set[str]) -> Tokenizer:
    """A byte-level tokenizer: ids from 0 `first`, up to `size` the vocabulary, then the added tokens `last`."""
    pieces, merges = _learned(byte_level=True)
    vocabulary = _vocabulary(first, pieces, size)
    tokenizer = Tokenizer(kinds.BPE(vocab=vocabulary, merges=[tuple(merge) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    for token in [*first, *last]:  # one by one: a new one gets the next id
        if token in special:
            tokenizer.add_special_tokens([token])
        else:
            tokenizer.add_tokens([AddedToken(token, normalized=True)])
    return tokenizer


def _sentencepiece(first: list[str], size: int, unknown: str, begin: str) -> Tokenizer:
    """A tokenizer as SentencePiece makes them: ▁ for a space, one in front, bytes where no piece fits, begin token."""
    pieces, merges = _learned(byte_level=False)
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = _vocabulary([*first, *in_bytes], pieces, size)
    model = kinds.BPE(
        vocab=vocabulary,
        merges=[tuple(merge) for merge in merges],
        unk_token=unknown,
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(first)
    pair = f"{begin} $A {begin} $B"
    ids = [(begin, vocabulary[begin])]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", pair=pair, special_tokens=ids)
    return tokenizer


def make(model_type: str) -> tuple[Tokenizer, dict]:
    """(tokenizer, its tokenizer_config.json) as the repositories of this model type publish them."""
    fields = {"clean_up_tokenization_spaces": True, "model_max_length": 1000000000000000019884624838656}
    if model_type in ("mamba", "gpt_neox"):
        first = [END, "<|padding|>"]
        tokenizer = _byte_level(first, 50254, NEOX_SPACES, set(first))
        fields |= {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False}
        fields |= {"bos_token": END, "eos_token": END, "unk_token": END}
        return tokenizer, fields | {"pad_token": END if model_type == "mamba" else None}
    if model_type == "olmoe":
        first = ["|||IP_ADDRESS|||", "<|padding|>"]
        last = [*NEOX_SPACES, "|||EMAIL_ADDRESS|||", "|||PHONE_NUMBER|||", END]
        tokenizer = _byte_level(first, 50254, last, {"<|padding|>", END})
        fields |= {"tokenizer_class": "GPTNeoXTokenizer", "add_prefix_space": False}
        return tokenizer, fields | {"bos_token": None, "eos_token": END, "pad_token": "<|padding|>"}
    if model_type == "deepseek":
        begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
        tokenizer = _byte_level([], 100000, [begin, end, *(f"placeholder{n}" for n in range(13))], {begin, end})
        single = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, 100000)]
        )
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), single])
        fields |= {"tokenizer_class": "LlamaTokenizerFast", "clean_up_tokenization_spaces": False}
        fields |= {"add_bos_token": True, "add_eos_token": False, "model_max_length": 16384}
        return tokenizer, fields | {"bos_token": begin, "eos_token": end, "pad_token": end}
    if model_type == "mixtral":
        tokenizer = _sentencepiece(["<unk>", "<s>", "</s>"], 32000, "<unk>", "<s>")
        fields |= {"tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": False}
        fields |= {"add_bos_token": True, "add_eos_token": False}
        return tokenizer, fields | {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if model_type == "jamba":
        first = ["<|pad|>", "<|startoftext|>", END, "<|unk|>"]
        tokenizer = _sentencepiece(first, 65536, "<|unk|>", "<|startoftext|>")
        fields |= {"tokenizer_class": "LlamaTokenizer", "clean_up_tokenization_spaces": False}
        fields |= {"add_bos_token": True, "add_eos_token": False, "pad_token": "<|pad|>"}
        return tokenizer, fields | {"bos_token": "<|startoftext|>", "eos_token": END, "unk_token": "<|unk|>"}
    raise ValueError(f"There is no stand-in for the tokenizer of model type {model_type!r}.")


@functools.cache
def _files(model_type: str) -> dict[str, str]:
    tokenizer, fields = make(model_type)
    special = {key: token for key, token in fields.items() if key.endswith("_token") and isinstance(token, str)}
    return {
        "tokenizer.json": tokenizer.to_str(),
        "tokenizer_config.json": json.dumps(fields, indent=1, ensure_ascii=False),
        "special_tokens_map.json": json.dumps(special, indent=1, ensure_ascii=False),
    }


def write(model_type: str, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json of a model type."""
    for name, content in _files(model_type).items():
        (folder / name).write_text(content, encoding="utf-8")
