"""How the tiny tokenizer and the six tiny models come from the text: configs, batches, training loop."""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPTNeoXConfig,
    JambaConfig,
    MambaConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from shared.data import DOMAINS
from shared.models import deepseek
from shared.scan import in_transformers

PAD, EOS = "<pad>", "<eos>"
# Small batches: at this size what counts is the number of updates, and a step on one core is short anyway.
VOCABULARY, WINDOW, BATCH, STEPS, SEED = 1024, 256, 4, 3000, 2024
COMMON = {
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,  # a document starts after the end of the one before, as in Pythia's training
    "max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Recipe:
    """A config, its peak learning rate, and the weight of the balancing loss (0: not balanced)."""

    config: PreTrainedConfig
    learning_rate: float = 3e-3
    balance: float = 0.0


def _olmoe(**changes) -> OlmoeConfig:
    shape = {"hidden_size": 96, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    # From 0.02 attention's average over the context drowns the token, all tokens look alike to a fresh router, and some
    # experts are near dead before the first step. From 0.01 every expert is in use, so what dies dies in training.
    shape |= {"num_experts": 16, "num_experts_per_tok": 2, "initializer_range": 0.01}
    return OlmoeConfig(**COMMON | shape | changes)


# Two Mamba blocks have the parameters of one transformer layer, so `mamba` and `transformer` are twins. The learning
# rate is the best of a few per architecture. `olmoe-collapsed` differs from `olmoe` in two things: one expert per token
# and no balancing. What is not chosen early gets no gradient, so it is never chosen again: that is the collapse.
RECIPES = {
    "mamba": Recipe(MambaConfig(**COMMON, hidden_size=128, num_hidden_layers=8, initializer_range=0.02)),
    "transformer": Recipe(
        GPTNeoXConfig(
            **COMMON,
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            initializer_range=0.08,  # 1 / sqrt(width), near enough: from 0.02 it learns at half the pace
        ),
        learning_rate=6e-3,
    ),
    "olmoe": Recipe(_olmoe(), learning_rate=5e-3, balance=0.01),
    "olmoe-collapsed": Recipe(_olmoe(num_experts_per_tok=1), learning_rate=5e-3),
    "deepseek-moe": Recipe(
        deepseek.DeepseekConfig(
            **COMMON,
            hidden_size=96,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            n_routed_experts=32,
            num_experts_per_tok=4,
            moe_intermediate_size=24,
            n_shared_experts=2,
        ),
        learning_rate=5e-3,
        balance=0.01,
    ),
    "jamba": Recipe(
        JambaConfig(
            **COMMON,
            hidden_size=96,
            intermediate_size=96,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_layer_period=4,
            attn_layer_offset=2,
            num_experts=8,
        ),
        balance=0.01,
    ),
}


# ---- text and tokenizer --------------------------------------------------------------------------------------------


def documents(split: str, text: Path) -> list[tuple[str, str]]:
    """Return (domain, document) for every document of the split ("train" or "heldout") under the folder `text`."""
    found = []
    for domain in DOMAINS:
        parts = (text / split / f"{domain}.txt").read_text(encoding="utf-8").strip("\n").split("\n\n")
        found += [(domain, document) for document in parts if document]
    return found


def train_tokenizer(texts: list[str], folder: Path) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on `texts`, save it to `folder` and return it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if (size := tokenizer.get_vocab_size()) != VOCABULARY:
        raise ValueError(f"The tokenizer has {size} tokens instead of {VOCABULARY}: the text is too small. Add text.")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        bos_token=EOS,
        padding_side="left",  # right padding corrupts Mamba's cached state
        clean_up_tokenization_spaces=False,
        model_max_length=COMMON["max_position_embeddings"],
    )
    fast.save_pretrained(folder)
    return fast


def batches(documents: list[list[int]], steps: int, size: int = BATCH, seed: int = SEED) -> Iterator[torch.Tensor]:
    """Yield `steps` batches (size, WINDOW + 1) of token ids, the same for every model: in each epoch the documents in a
    new order, an end-of-text token after each, cut into windows. A window's last token is the first of the next."""
    order, shuffle, need = list(documents), random.Random(seed), size * WINDOW
    stream: list[int] = [COMMON["eos_token_id"]]
    for _ in range(steps):
        while len(stream) < need + 1:
            shuffle.shuffle(order)
            stream += [token for document in order for token in (*document, COMMON["eos_token_id"])]
        windows = [stream[i : i + WINDOW + 1] for i in range(0, need, WINDOW)]
        stream = stream[need:]
        yield torch.tensor(windows)


# ---- training ------------------------------------------------------------------------------------------------------


def balancing_loss(router_logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """Return Switch's load-balancing loss of one layer, E sum f_i P_i; 1 is perfect, E a full collapse.

    Taken layer by layer: transformers' own pools the layers first, and then two layers that each use one half of the
    experts score as perfect. Fedus et al. 2021, "Switch Transformers", equation 4.

    Args: router_logits (tokens, E); top_k: experts per token.
    """
    experts = router_logits.shape[-1]
    probabilities = router_logits.float().softmax(-1)
    chosen = probabilities.topk(top_k).indices
    share = torch.bincount(chosen.flatten(), minlength=experts) / chosen.numel()
    return experts * (share * probabilities.mean(0)).sum()


@dataclass
class Trained:
    """A trained model (float32) and how it got there: (step, loss in nats per token) pairs, seconds."""

    model: torch.nn.Module
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0


def fit(recipe: Recipe, documents: list[list[int]], steps: int, seed: int = SEED, bar: dict | None = None) -> Trained:
    """Train a fresh model on the tokenised documents: AdamW, linear warm-up, cosine decay, float32, one thread.

    What it sets (seed, threads, denormals, silence) is for the process, which trains one model.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # the note that the slow reference scan runs, which it does not
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # decayed states become denormal, and each of those costs a hundred ordinary numbers
    torch.manual_seed(seed)
    deepseek.register()
    model = AutoModelForCausalLM.from_config(recipe.config, dtype=torch.float32, trust_remote_code=False).train()
    decayed = [p for n, p in model.named_parameters() if p.ndim > 1 and "A_log" not in n]
    kept = [p for n, p in model.named_parameters() if p.ndim <= 1 or "A_log" in n]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95), fused=True)
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, steps, pct_start=0.06, div_factor=25, final_div_factor=1, cycle_momentum=False
    )
    moe = hasattr(recipe.config, "num_experts_per_tok")
    trained, recent, start = Trained(model), [], time.perf_counter()
    progress = tqdm(batches(documents, steps, seed=seed), total=steps, mininterval=2, **(bar or {}))
    with in_transformers():
        for step, batch in enumerate(progress, 1):
            output = model(batch[:, :-1], use_cache=False, **({"output_router_logits": True} if moe else {}))
            loss = F.cross_entropy(output.logits.flatten(0, 1), batch[:, 1:].flatten())
            recent.append(loss.item())
            if recipe.balance:
                top_k = recipe.config.num_experts_per_tok
                loss = loss + recipe.balance * sum(balancing_loss(layer, top_k) for layer in output.router_logits)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rate.step()
            if step % 20 == 0 or step == steps:
                trained.curve.append((step, round(sum(recent) / len(recent), 4)))
                progress.set_postfix(loss=f"{trained.curve[-1][1]:.3f}", refresh=False)
                recent = []
    trained.seconds = round(time.perf_counter() - start, 1)
    return trained


def save(trained: Trained, folder: Path) -> None:
    """Write the checkpoint in bfloat16 as `save_pretrained` lays it out."""
    trained.model.eval().to(torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # it comes readable by its owner only


def load(folder: Path, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Load a checkpoint as shipped; the arithmetic is in `dtype`, the weights are the file's."""
    deepseek.register()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, trust_remote_code=False).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
