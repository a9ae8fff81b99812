"""Known-wrong answers of lab 2.4.6."""

import torch

from shared import data
from shared.checks import lab_2_4_6
from wrong_answers import faulty


def no_gradient(model, batch, *, none=True, zero=True, frozen=False, any_row=False, keep=False, alive=False):
    model.zero_grad()
    model(**batch).loss.backward()
    names = []
    for name, p in model.named_parameters():
        empty = p.grad is not None and not (p.grad.all() if any_row else p.grad.any())
        if (p.requires_grad or frozen) and ((none and p.grad is None) or (zero and empty)) != alive:
            names.append(name)
    if not keep:
        model.zero_grad()
    return names


def ranked(shapes, parameters, limit, *, per=lambda o, i: o + i, own=True, over=0):
    each = sum(per(o, i) for o, i in shapes)
    return max(r for r in range(20_000) if r == 0 or r * each < limit * (parameters + own * r * each)) + over


def with_lora(model, rank, *, targets=None, alpha=2, freeze=True, nothing=False, dropout=0.0):
    from peft import LoraConfig, get_peft_model

    if nothing:
        return model.requires_grad_(False)
    own = {"mamba": ["in_proj", "x_proj"], "gpt_neox": ["query_key_value"]}[model.config.model_type]
    options = {"lora_dropout": dropout, "task_type": "CAUSAL_LM", "lora_alpha": alpha * rank}
    adapted = get_peft_model(model, LoraConfig(r=rank, target_modules=targets or own, **options))
    return adapted if freeze else adapted.requires_grad_(True)


def encoded(example, tokenizer, *, end=True, mask=True, shift=0, end_learned=True, swapped=False):
    prompt = tokenizer(data.format_instruction({**example, "output": ""}))["input_ids"]
    response = tokenizer(example["output"])["input_ids"] + [tokenizer.eos_token_id] * end
    labels = [-100] * len(prompt) + response if mask else prompt + response
    if not end_learned:
        labels[-1] = -100
    if swapped:
        labels = prompt + [-100] * len(response)
    return {"input_ids": prompt + response, "labels": labels[shift:] + [-100] * shift}


def padded(features, pad_id, *, left=False, by_id=False, learned=False, hidden=True, mask_by_id=False):
    T = max(len(f["input_ids"]) for f in features)
    side = lambda row, value: [value] * (T - len(row)) + row if left else row + [value] * (T - len(row))  # noqa: E731
    ids = torch.tensor([side(f["input_ids"], pad_id) for f in features])
    labels = torch.tensor([side(f["labels"], pad_id if learned else -100) for f in features])
    mask = torch.tensor([side([1] * len(f["labels"]), 0 if hidden else 1) for f in features])
    mask = (ids != pad_id).long() if mask_by_id else mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels.masked_fill(ids == pad_id, -100) if by_id else labels,
    }


def trained_bytes(frozen, trained, frozen_size=4, *, frozen_more=0, each=16):
    return frozen * (frozen_size + frozen_more) + trained * each


def merging(weight, A, B, alpha, *, scale=lambda alpha, rank: alpha / rank, sign=1, whole=1, transposed=False):
    found = whole * weight + sign * scale(alpha, len(A)) * B @ A
    return found.T if transposed else found


WRONG = [
    (lab_2_4_6.without_gradient, faulty(no_gradient, zero=False), "zero everywhere teaches nothing"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, none=False), "has None for a gradient"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, frozen=True), "requires_grad first"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, alive=True), "the parameters that do get one"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, any_row=True), "One row with a gradient is enough"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, keep=True), "gradients left behind"),
    (lab_2_4_6.rank_for, faulty(ranked, per=lambda o, i: o * i), "their sizes add up"),
    (lab_2_4_6.rank_for, faulty(ranked, per=lambda o, i: i), "Only A was counted"),
    (lab_2_4_6.rank_for, faulty(ranked, per=lambda o, i: o), "Only B was counted"),
    (lab_2_4_6.rank_for, faulty(ranked, own=False), "count among all parameters"),
    (lab_2_4_6.rank_for, faulty(ranked, over=1), "already too many"),
    (lab_2_4_6.adapt, faulty(with_lora, nothing=True), "LoRA on nothing"),
    (lab_2_4_6.adapt, faulty(with_lora, targets=["in_proj", "x_proj", "dt_proj"]), "an adapter is dead"),
    (lab_2_4_6.adapt, faulty(with_lora, targets=["in_proj", "x_proj", "embeddings"]), "goes silently wrong"),
    (lab_2_4_6.adapt, faulty(with_lora, targets=["in_proj"]), "x_proj has no adapter"),
    (lab_2_4_6.adapt, faulty(with_lora, freeze=False), "of the base train too"),
    (lab_2_4_6.adapt, lambda model, rank: with_lora(model, 8), "pass it on as r"),
    (lab_2_4_6.adapt, lambda model, rank: with_lora(model, rank, alpha=8 / 3), "scales each rank differently"),
    (lab_2_4_6.adapt, faulty(with_lora, dropout=0.1), "dropout"),
    (lab_2_4_6.encode, faulty(encoded, mask=False), "prompt is not masked"),
    (lab_2_4_6.encode, faulty(encoded, end=False), "never learns to stop"),
    (lab_2_4_6.encode, faulty(encoded, end_learned=False), "end-of-text token is masked"),
    (lab_2_4_6.encode, faulty(encoded, shift=1), "shifts them by itself"),
    (lab_2_4_6.encode, faulty(encoded, swapped=True), "the response that is learned"),
    (lab_2_4_6.collate, faulty(padded, by_id=True), "pad = eos"),
    (lab_2_4_6.collate, faulty(padded, mask_by_id=True), "pad = eos"),
    (lab_2_4_6.collate, faulty(padded, left=True), "to the right for training"),
    (lab_2_4_6.collate, faulty(padded, learned=True), "Padding is learned"),
    (lab_2_4_6.collate, faulty(padded, hidden=False), "Padding is not hidden"),
    (lab_2_4_6.training_bytes, faulty(trained_bytes, frozen_more=12), "no gradient and no moments"),
    (lab_2_4_6.training_bytes, faulty(trained_bytes, frozen_more=4), "not for frozen weights"),
    (lab_2_4_6.training_bytes, faulty(trained_bytes, each=12), "two moments"),
    (lab_2_4_6.training_bytes, lambda frozen, trained, frozen_size=4: trained * 16, "are there too"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: trained_bytes(f, t), "frozen_size is not used"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: 1), "scaling is missing"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: alpha), "divided by the rank"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: rank / alpha), "not rank / alpha"),
    (lab_2_4_6.merged, faulty(merging, whole=0), "weight itself is missing"),
    (lab_2_4_6.merged, faulty(merging, sign=-1), "not taken from it"),
    (lab_2_4_6.merged, faulty(merging, transposed=True), "transposed"),
]

RIGHT = {
    lab_2_4_6.without_gradient: no_gradient,
    lab_2_4_6.rank_for: ranked,
    lab_2_4_6.adapt: with_lora,
    lab_2_4_6.encode: encoded,
    lab_2_4_6.collate: padded,
    lab_2_4_6.training_bytes: trained_bytes,
    lab_2_4_6.merged: merging,
}
