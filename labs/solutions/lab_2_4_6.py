"""Answers of lab 2.4.6: one block per exercise cell, which takes the place of its stub."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from shared import data


# %% ex-without-gradient
def without_gradient(model: nn.Module, batch: dict[str, Tensor]) -> list[str]:
    """Which trainable parameters does one backward pass leave without a gradient?

    batch: what the model takes, with labels; the model returns an object with a loss.

    Returns: names of parameters whose gradient is None or zero everywhere, in the model's
        order. No gradients stay behind.
    """
    model.zero_grad()
    model(**batch).loss.backward()
    names = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    model.zero_grad()
    return names


# %% ex-rank-for
def rank_for(shapes: list[tuple[int, int]], parameters: int, limit: float) -> int:
    """The largest rank at which LoRA trains less than `limit` of all parameters.

    shapes: (outputs, inputs) of each weight matrix that gets an adapter.
    parameters: of the model without adapters. The adapters count among all parameters.

    Returns: the rank; 0 where even rank 1 is too many.
    """
    per_rank = sum(outputs + inputs for outputs, inputs in shapes)
    rank = 0
    while (rank + 1) * per_rank < limit * (parameters + (rank + 1) * per_rank):
        rank += 1
    return rank


# %% ex-adapt
def adapt(model: nn.Module, rank: int) -> PeftModel:
    """LoRA of this rank, scaled by 2, without dropout, where the forward pass uses it.

    model: a causal model of transformers with the model_type "mamba" or "gpt_neox"; of
        the latter, the attention's query_key_value is adapted.

    Returns: the model with adapters; nothing else trains.
    """
    targets = {"mamba": ["in_proj", "x_proj"], "gpt_neox": ["query_key_value"]}
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets[model.config.model_type],
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# %% ex-encode
def encode(example: dict[str, str], tokenizer) -> dict[str, list[int]]:
    """One instruction as what the model reads and what it has to learn.

    example: with "instruction", "output", and an "input" where there is one.

    Returns: {"input_ids", "labels"}, lists of the same length: prompt, response, and one
        end-of-text token; the labels are the same tokens, with -100 for each of the prompt.
    """
    prompt = tokenizer(data.format_instruction({**example, "output": ""}))["input_ids"]
    response = tokenizer(example["output"].strip())["input_ids"] + [tokenizer.eos_token_id]
    labels = [-100] * len(prompt) + response
    return {"input_ids": prompt + response, "labels": labels}


# %% ex-collate
def collate(features: list[dict[str, list[int]]], pad_id: int) -> dict[str, Tensor]:
    """Encoded examples as one batch for training, shorter ones filled up at the right.

    features: what `encode` returns, B of them; T is the length of the longest.

    Returns: int64 tensors (B, T): input_ids, filled with pad_id; attention_mask, 1 where
        there is a token of the example; labels, filled with -100.
    """
    longest = max(len(feature["input_ids"]) for feature in features)
    fill = {"input_ids": pad_id, "labels": -100}
    batch = {
        key: torch.tensor([f[key] + [value] * (longest - len(f[key])) for f in features])
        for key, value in fill.items()
    }
    lengths = torch.tensor([len(feature["input_ids"]) for feature in features])
    batch["attention_mask"] = (torch.arange(longest) < lengths[:, None]).long()
    return batch


# %% ex-training-bytes
def training_bytes(frozen: int, trained: int, frozen_size: int = 4) -> int:
    """Memory of weights, gradients and AdamW's states; activations are not in it.

    frozen, trained: numbers of parameters. frozen_size: bytes of a frozen one, 2 in
        bfloat16. What trains is kept in float32, with all that belongs to it.
    """
    weight = gradient = first_moment = second_moment = 4
    per_trained = weight + gradient + first_moment + second_moment
    return frozen * frozen_size + trained * per_trained


# %% ex-merged
def merged(weight: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """The weight of one matrix that does what the matrix and its adapter do.

    weight: (outputs, inputs). A: (rank, inputs). B: (outputs, rank).
    alpha: LoRA's scaling numerator, peft's lora_alpha.

    Returns: (outputs, inputs), a new tensor.
    """
    return weight + alpha / len(A) * B @ A
