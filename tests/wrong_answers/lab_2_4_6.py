"""Known-wrong answers of lab 2.4.6."""

import math

import numpy as np
import torch
from transformers import BatchEncoding

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


def with_lora(model, rank, *, targets=None, alpha=2, freeze=True, nothing=False, dropout=0.0, **more):
    from peft import LoraConfig, get_peft_model

    if nothing:
        return model.requires_grad_(False)
    own = {"mamba": ["in_proj", "x_proj"], "gpt_neox": ["query_key_value"]}[model.config.model_type]
    options = {"lora_dropout": dropout, "task_type": "CAUSAL_LM", "lora_alpha": alpha * rank, **more}
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


# ---- answers in other styles, all right ----------------------------------------------------------------------------


def by_key(model, batch):
    model.zero_grad()
    model(**batch)["loss"].backward()
    silent = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or (p.grad == 0).all())]
    for p in model.parameters():
        p.grad = None
    return silent


def by_autograd(model, batch):
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    gradients = torch.autograd.grad(model(**batch).loss, [p for _, p in named], allow_unused=True)
    return [name for (name, _), g in zip(named, gradients, strict=True) if g is None or torch.count_nonzero(g) == 0]


def by_largest(model, batch):
    model.zero_grad(set_to_none=False)
    model(**batch).loss.backward()
    largest = {name: 0 if p.grad is None else p.grad.abs().max().item() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = None
    return tuple(name for name, p in model.named_parameters() if p.requires_grad and largest[name] == 0)


def with_grad_on(model, batch):
    found = []
    with torch.enable_grad():
        model.zero_grad(set_to_none=True)
        model(**batch).loss.backward()
    for name, p in model.named_parameters():
        if p.requires_grad and (p.grad is None or bool((p.grad == 0).all())):
            found.append(name)
        p.grad = None
    return found


def rank_in_closed_form(shapes, parameters, limit):
    each = sum(map(sum, shapes))
    return max(0, math.ceil(limit * parameters / ((1 - limit) * each)) - 1)


def rank_by_bisection(shapes, parameters, limit):
    each = sum(outputs + inputs for outputs, inputs in shapes)
    low, high = 0, 1 << 40
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if middle * each / (parameters + middle * each) < limit else (low, middle)
    return low


def rank_as_numpy(shapes, parameters, limit):
    return np.int64(ranked(shapes, parameters, limit))


def rank_as_a_tensor(shapes, parameters, limit):
    return torch.tensor(rank_by_bisection(shapes, parameters, limit))


def adapt_without_a_task(model, rank):
    from peft import LoraConfig, get_peft_model

    mamba = model.config.model_type == "mamba"
    targets = ["x_proj", "in_proj"] if mamba else ["attention.query_key_value"]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=rank * 2, target_modules=targets, bias="none"))


def adapt_by_pattern(model, rank):
    from peft import LoraConfig, get_peft_model

    pattern = r".*\.(in_proj|x_proj|query_key_value)"
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules=pattern))


def adapt_gaussian(model, rank):
    return with_lora(model, rank, init_lora_weights="gaussian")


def adapt_by_a_model(model, rank):
    from peft import LoraConfig, PeftModelForCausalLM

    targets = {"in_proj", "x_proj"} if "mamba" in model.config.model_type else {"query_key_value"}
    return PeftModelForCausalLM(model, LoraConfig(r=rank, lora_alpha=rank + rank, target_modules=targets))


def encode_as_batch(example, tokenizer):
    return BatchEncoding(encoded(example, tokenizer))


def encode_step_by_step(example, tokenizer):
    text = data.format_instruction({key: example[key] for key in ("instruction", "input") if key in example})
    ids = tokenizer.encode(text)
    labels = [-100 for _ in ids]
    for token in [*tokenizer.encode(example["output"]), tokenizer.eos_token_id]:
        ids.append(token)
        labels.append(token)
    return {"labels": labels, "input_ids": ids}


def encode_with_a_mask(example, tokenizer):
    found = encoded(example, tokenizer)
    return {**found, "attention_mask": [1] * len(found["labels"])}


def encode_by_tensors(example, tokenizer):
    prompt = tokenizer(data.format_instruction({**example, "output": None}), return_tensors="pt").input_ids[0]
    response = tokenizer(example["output"], return_tensors="pt").input_ids[0]
    ids = torch.cat([prompt, response, torch.tensor([tokenizer.eos_token_id])])
    labels = ids.clone()
    labels[: len(prompt)] = -100
    return {"input_ids": ids.tolist(), "labels": labels.tolist()}


def collate_by_torch(features, pad_id):
    def filled(rows, value):
        return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], True, value)

    ids = filled([f["input_ids"] for f in features], pad_id)
    mask = filled([[1] * len(f["input_ids"]) for f in features], 0)
    return {"input_ids": ids, "attention_mask": mask, "labels": filled([f["labels"] for f in features], -100)}


def collate_in_place(features, pad_id):
    shape = len(features), max(len(f["labels"]) for f in features)
    ids, mask = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
    labels = torch.full(shape, -100)
    for row, feature in enumerate(features):
        n = len(feature["input_ids"])
        ids[row, :n], labels[row, :n] = torch.tensor(feature["input_ids"]), torch.tensor(feature["labels"])
        mask[row, :n] = 1
    return {"labels": labels, "input_ids": ids, "attention_mask": mask}


def collate_by_numpy(features, pad_id):
    n = max(len(f["input_ids"]) for f in features)
    fill = lambda key, v: np.stack([np.pad(f[key], (0, n - len(f[key])), constant_values=v) for f in features])  # noqa: E731
    mask = np.stack([np.arange(n) < len(f["input_ids"]) for f in features])
    found = {"input_ids": fill("input_ids", pad_id), "labels": fill("labels", -100), "attention_mask": mask}
    return {key: torch.from_numpy(value.astype(np.int64)) for key, value in found.items()}


def collate_as_batch(features, pad_id):
    return BatchEncoding(padded(features, pad_id))


def merged_by_numpy(weight, A, B, alpha):
    found = weight.detach().numpy() + alpha / A.shape[0] * (B.detach().numpy() @ A.detach().numpy())
    return torch.from_numpy(np.asarray(found))


def merged_by_einsum(weight, A, B, alpha):
    return weight.clone().add_(torch.einsum("or,ri->oi", B, A).detach(), alpha=alpha / B.shape[1])


def merged_by_rank_one(weight, A, B, alpha):
    found = weight.clone()
    for a, b in zip(A, B.T, strict=True):
        found = found + alpha / len(A) * torch.outer(b, a)
    return found


def merged_in_lists(weight, A, B, alpha):
    return (weight + (B @ A) * (alpha / len(A))).tolist()


# ---- more wrong answers ---------------------------------------------------------------------------------------------


def by_sum(model, batch, reduce=lambda g: g.sum() == 0):
    model.zero_grad()
    model(**batch).loss.backward()
    found = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or bool(reduce(p.grad)))]
    model.zero_grad()
    return found


def in_training_mode(model, batch):
    return by_autograd(model.train(), batch)


def freezing(model, batch):
    found = by_autograd(model, batch)
    for name, p in model.named_parameters():
        p.requires_grad_(p.requires_grad and name not in found)
    return found


def stepping(model, batch):
    found = by_autograd(model, batch)
    with torch.no_grad():
        next(model.parameters()).add_(1)
    return found


def by_hooks(model, batch):
    alive = set()
    for name, p in model.named_parameters():
        if p.requires_grad:
            p.register_hook(lambda gradient, name=name: alive.add(name) if gradient.any() else None)
    model.zero_grad()
    model(**batch).loss.backward()
    model.zero_grad()
    return [name for name, p in model.named_parameters() if p.requires_grad and name not in alive]


def all_zero(model, rank):
    adapted = with_lora(model, rank)
    for name, part in adapted.named_parameters():
        if "lora_" in name:
            part.data.zero_()
    return adapted


WRONG = [
    (lab_2_4_6.without_gradient, faulty(no_gradient, zero=False), "zero everywhere teaches nothing"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, none=False), "has None for a gradient"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, frozen=True), "requires_grad first"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, alive=True), "the parameters that do get one"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, any_row=True), "One row with a gradient is enough"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, keep=True), "gradients were left behind"),
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
    (lab_2_4_6.without_gradient, by_sum, "sum to zero"),
    (lab_2_4_6.without_gradient, lambda m, b: by_sum(m, b, lambda g: g.abs().max() < 1e-6), "tiny"),
    (lab_2_4_6.without_gradient, lambda m, b: by_sum(m, b, lambda g: g.max() <= 0), "expected"),
    (lab_2_4_6.without_gradient, lambda m, b: by_sum(m, b, lambda g: g.flatten()[0] == 0), "expected"),
    (lab_2_4_6.without_gradient, lambda m, b: sorted(by_autograd(m, b)), "order"),
    (lab_2_4_6.without_gradient, lambda m, b: by_autograd(m, b)[:2], "expected"),
    (
        lab_2_4_6.without_gradient,
        lambda m, b: ["never_used.weight", "switched_off.weight", "other_never_used.weight"],
        "exp",
    ),
    (lab_2_4_6.without_gradient, lambda m, b: len(by_autograd(m, b)), "expected"),
    (lab_2_4_6.without_gradient, in_training_mode, "another mode"),
    (lab_2_4_6.without_gradient, freezing, "other parameters with requires_grad"),
    (lab_2_4_6.without_gradient, stepping, "other weights than before"),
    (lab_2_4_6.without_gradient, by_hooks, "still has a hook"),
    (
        lab_2_4_6.without_gradient,
        lambda m, b: by_autograd(m, {"tokens": b["tokens"], "labels": b["labels"]}),
        "KeyError",
    ),
    (lab_2_4_6.rank_for, lambda s, p, limit: ranked(s, p, 0.2), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: ranked(s[:1], p, limit), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: ranked(s, 66_496, limit), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: max(1, ranked(s, p, limit)), "expected 0"),
    (lab_2_4_6.rank_for, lambda s, p, limit: float(ranked(s, p, limit)), "whole number"),
    (lab_2_4_6.rank_for, lambda s, p, limit: min(256, ranked(s, p, limit)), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: limit * p / sum(map(sum, s)), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: round(limit * p / (1 - limit) / sum(map(sum, s))), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: 1 << (ranked(s, p, limit).bit_length() - 1), "expected"),
    (lab_2_4_6.rank_for, lambda s, p, limit: ranked(list(set(s)), p, limit), "expected"),
    (lab_2_4_6.adapt, faulty(with_lora, layers_to_transform=[0]), "in some layers"),
    (lab_2_4_6.adapt, faulty(with_lora, rank_pattern={"x_proj": 1}), "rank of the adapter"),
    (lab_2_4_6.adapt, faulty(with_lora, use_dora=True), "another method"),
    (lab_2_4_6.adapt, faulty(with_lora, use_rslora=True), "root of the rank"),
    (lab_2_4_6.adapt, faulty(with_lora, alpha_pattern={"in_proj": 1}), "scaling"),
    (lab_2_4_6.adapt, faulty(with_lora, init_lora_weights="pissa"), "weights of the base have changed"),
    (lab_2_4_6.adapt, faulty(with_lora, init_lora_weights=False), "before the first step"),
    (lab_2_4_6.adapt, faulty(with_lora, inference_mode=True), "nothing trains"),
    (lab_2_4_6.adapt, faulty(with_lora, targets="all-linear"), "ValueError"),
    (lab_2_4_6.adapt, lambda model, rank: with_lora(model, rank).double(), "another dtype"),
    (lab_2_4_6.adapt, faulty(with_lora, lora_bias=True), "two matrices beside"),
    (lab_2_4_6.adapt, all_zero, "all of the adapter is zero"),
    (lab_2_4_6.adapt, lambda model, rank: model, "expected a PeftModel"),
    (lab_2_4_6.adapt, lambda model, rank: with_lora(model, rank).base_model.model, "expected a PeftModel"),
    (lab_2_4_6.encode, lambda e, t: encoded({**e, "output": e["output"].upper()}, t), "input_ids"),
    (lab_2_4_6.encode, lambda e, t: encoded({**e, "input": ""}, t), "input_ids"),
    (lab_2_4_6.encode, lambda e, t: encoded({"input": e["input"], **e}, t), "KeyError"),
    (lab_2_4_6.encode, lambda e, t: {k: torch.tensor(v) for k, v in encoded(e, t).items()}, "lists are meant"),
    (lab_2_4_6.encode, lambda e, t: {k: v[:24] for k, v in encoded(e, t).items()}, "input_ids"),
    (lab_2_4_6.encode, lambda e, t: {k: v[:2048] for k, v in encoded(e, t).items()}, "input_ids"),
    (lab_2_4_6.encode, lambda e, t: encoded({**e, "output": e["output"].lower()}, t), "input_ids"),
    (lab_2_4_6.encode, lambda e, t: encoded({k: v.strip() for k, v in e.items()}, t), "input_ids"),
    (lab_2_4_6.encode, lambda e, t: tuple(encoded(e, t).values()), "expected a dict"),
    (
        lab_2_4_6.encode,
        lambda e, t: {k: [1 if i == t.eos_token_id else i for i in v] for k, v in encoded(e, t).items()},
        "input_ids",
    ),
    (lab_2_4_6.encode, lambda e, t: {k: [*v, t.pad_token_id or 0] for k, v in encoded(e, t).items()}, "input_ids"),
    (lab_2_4_6.encode, lambda e, t: {k: v[::-1] for k, v in encoded(e, t).items()}, "input_ids"),
    (lab_2_4_6.encode, lambda e, t: {"input_ids": encoded(e, t)["input_ids"]}, "expected a dict"),
    (lab_2_4_6.collate, faulty(padded, by_id=True, mask_by_id=True), "masked and hidden"),
    (lab_2_4_6.collate, lambda f, pad: {k: v.float() for k, v in padded(f, pad).items()}, "int64"),
    (lab_2_4_6.collate, lambda f, pad: {k: v.int() for k, v in padded(f, pad).items()}, "int64"),
    (lab_2_4_6.collate, lambda f, pad: {k: v.tolist() for k, v in padded(f, pad).items()}, "int64"),
    (lab_2_4_6.collate, lambda f, pad: {k: v[:, :4] for k, v in padded(f, pad).items()}, "shape"),
    (lab_2_4_6.collate, lambda f, pad: {k: v[:, :512] for k, v in padded(f, pad).items()}, "shape"),
    (lab_2_4_6.collate, lambda f, pad: padded(f, 0), "input_ids"),
    (lab_2_4_6.collate, lambda f, pad: padded(f[:3], pad), "shape"),
    (
        lab_2_4_6.collate,
        lambda f, pad: {**padded(f, pad), "attention_mask": padded(f, pad)["attention_mask"].bool()},
        "int",
    ),
    (lab_2_4_6.collate, lambda f, pad: padded([{**x, "labels": x["input_ids"]} for x in f], pad), "not the tokens"),
    (lab_2_4_6.collate, lambda f, pad: padded([*f, {"input_ids": [0] * 64, "labels": [-100] * 64}], pad), "shape"),
    (lab_2_4_6.collate, lambda f, pad: {k: v for k, v in padded(f, pad).items() if k != "labels"}, "without"),
    (lab_2_4_6.collate, lambda f, pad: [x["input_ids"].append(pad) for x in f] and padded(f, pad), "was changed"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=2: trained_bytes(f, t, frozen_size), "expected"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: 1000 * frozen_size + 16 * t, "expected"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: trained_bytes(f, 10, frozen_size), "expected"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: f * frozen_size + t * 4 * frozen_size, "stays in float32"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: f * frozen_size + t * (12 + frozen_size), "float32 too"),
    (lab_2_4_6.training_bytes, faulty(trained_bytes, each=20), "expected"),
    (lab_2_4_6.training_bytes, lambda *a, **k: trained_bytes(*a, **k) / 1e9, "expected"),
    (lab_2_4_6.training_bytes, lambda *a, **k: str(trained_bytes(*a, **k)), "expected"),
    (lab_2_4_6.training_bytes, lambda f, t, frozen_size=4: trained_bytes(t, f, frozen_size), "expected"),
    (lab_2_4_6.training_bytes, lambda *a, **k: trained_bytes(*a, **k) + 1, "expected"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: alpha // rank), "expected"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: 2), "expected"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: alpha / 2), "expected"),
    (lab_2_4_6.merged, faulty(merging, scale=lambda alpha, rank: alpha / rank**0.5), "expected"),
    (lab_2_4_6.merged, lambda W, A, B, alpha: W.add_(alpha / len(A) * (B @ A).detach()), "was changed"),
    (
        lab_2_4_6.merged,
        lambda W, A, B, alpha: torch.from_numpy(W.numpy() + alpha / len(A) * B.numpy() @ A.numpy()),
        "grad",
    ),
    (lab_2_4_6.merged, lambda W, A, B, alpha: merging(W, A, B, alpha) if B.any() else W, "a new tensor is meant"),
    (lab_2_4_6.merged, lambda W, A, B, scaling: merging(W, A, B, scaling), "TypeError"),
    (lab_2_4_6.merged, lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A, "number of A's rows"),
    (lab_2_4_6.merged, lambda W, A, B, alpha: W + alpha / len(A) * A.T @ B.T, "RuntimeError"),
    (lab_2_4_6.merged, lambda W, A, B, alpha: W + alpha / len(A) * (B.sum(1, keepdim=True) * A.sum(0)), "expected"),
    (lab_2_4_6.merged, lambda W, A, B, alpha: (merging(W, A, B, alpha) * 100).round() / 100, "expected"),
]

RIGHT = {
    lab_2_4_6.without_gradient: [
        no_gradient,
        by_autograd,
        by_largest,
        by_key,
        with_grad_on,
        lambda *a: tuple(no_gradient(*a)),
    ],
    lab_2_4_6.rank_for: [ranked, rank_in_closed_form, rank_by_bisection, rank_as_numpy, rank_as_a_tensor],
    lab_2_4_6.adapt: [with_lora, adapt_without_a_task, adapt_by_pattern, adapt_gaussian, adapt_by_a_model],
    lab_2_4_6.encode: [encoded, encode_as_batch, encode_step_by_step, encode_with_a_mask, encode_by_tensors],
    lab_2_4_6.collate: [padded, collate_by_torch, collate_in_place, collate_by_numpy, collate_as_batch],
    lab_2_4_6.training_bytes: [
        trained_bytes,
        lambda frozen, trained, frozen_size=4: frozen_size * frozen + sum([4, 4, 8]) * trained,
        lambda frozen, trained, frozen_size=4: float(trained_bytes(frozen, trained, frozen_size)),
        lambda frozen, trained, frozen_size=4: np.int64(frozen) * frozen_size + np.int64(trained) * 16,
        lambda frozen, trained, frozen_size=4: torch.tensor(trained_bytes(frozen, trained, frozen_size)),
    ],
    lab_2_4_6.merged: [merging, merged_by_numpy, merged_by_einsum, merged_by_rank_one, merged_in_lists],
}
