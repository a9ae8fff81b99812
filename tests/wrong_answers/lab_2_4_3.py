"""Known-wrong answers of lab 2.4.3."""

import math

import torch
import torch.nn.functional as F

from shared import experts
from shared.checks import lab_2_4_3
from shared.kits import routing
from wrong_answers import faulty

ROUTED_FIRST = ("embedding", "attention", "router", "routed", "shared")


def parts(shapes, top_k, *, order=None, active=None, total=None, words=()):
    marks = {
        "embedding": ("embed_tokens", "lm_head"),
        "attention": ("self_attn.",),
        "router": (".gate.weight", ".router.weight"),
        "shared": (".shared_experts.",),
        "routed": (".experts.",),
        **dict(words),
    }
    found = dict.fromkeys((*marks, "other"), (0, 0))
    for name, shape in shapes.items():
        part = next((p for p in order or marks if any(m in name for m in marks[p])), "other")
        kept = (total or (lambda size, E: size))(shape.numel(), shape[0]) if part == "routed" else shape.numel()
        k = (active or (lambda E: top_k))(shape[0])
        works = shape.numel() // shape[0] * k if part == "routed" else kept
        found[part] = found[part][0] + kept, found[part][1] + works
    return found


def recorded(model, input_ids, attention_mask, *, padding=-1, remove="always", masked=True, where="experts"):
    """Hooks on the experts; or on gate_proj, or on the router, of which the top k of the logits are taken."""
    found, hooks = {}, []
    if where == "gate_proj":
        layers = {i: m for i, (n, m) in enumerate(model.named_modules()) if n.endswith("gate_proj")}
    else:
        layers = experts.experts_modules(model) if where == "experts" else routing.routers(model)
    for layer, module in layers.items():

        def see(module, args, layer=layer):
            if where != "experts":
                logits = args[0].reshape(-1, args[0].shape[-1]) @ module.weight.T
            chosen = args[1] if where == "experts" else logits.topk(model.config.num_experts_per_tok).indices
            found[layer] = chosen.reshape(*input_ids.shape, -1).masked_fill(attention_mask[..., None] == 0, padding)

        hooks.append(module.register_forward_pre_hook(see))
    try:
        model(input_ids=input_ids, attention_mask=attention_mask if masked else None)
    finally:
        if remove == "always":
            [hook.remove() for hook in hooks]
    if remove:
        [hook.remove() for hook in hooks]
    return found


def counted(indices, experts, *, padding=False, ranks=None, over=None):
    layers = []
    for chosen in indices.values():
        chosen = chosen[..., :ranks]
        real = F.one_hot(chosen % experts, experts) * (padding or (chosen >= 0)[..., None])
        layers.append(real.sum((1, 2)))
    counts = torch.stack(layers, 1)
    return counts if over is None else counts.sum(over)


def information(table, *, bits=False, uniform=False, safe=True, over=(-2, -1)):
    p = table / table.sum(over, keepdim=True)
    apart = p.sum(-1, keepdim=True) * (1 / p.shape[-1] if uniform else p.sum(-2, keepdim=True))
    terms = p * (p / apart).log()
    found = (terms.nan_to_num(0) if safe else terms).sum((-2, -1))
    return found / math.log(2) if bits else found


def permuted(counts, labels, statistic, permutations, generator, *, unit="document", p="right", once=False):
    domains = int(labels.max()) + 1

    def measure(labels, counts=counts):
        return statistic(torch.einsum("nd,n...e->...de", F.one_hot(labels, domains).double(), counts))

    def tokens():  # each token gets a label of its own: a document falls apart
        share = torch.rand(counts.shape, generator=generator, dtype=torch.float64)
        first = (counts * share).round()
        return statistic(torch.stack([first.sum(0), (counts - first).sum(0)], -2))

    def draw():
        if unit == "token":
            return tokens()
        if unit == "replaced":
            return measure(labels[torch.randint(len(labels), (len(labels),), generator=generator)] | labels[0])
        return measure(labels[torch.randperm(len(labels), generator=generator)])

    observed = measure(labels)
    null = torch.stack([draw()] * permutations if once else [draw() for _ in range(permutations)])
    count = {
        "right": null >= observed - 1e-9,
        "zero": null >= observed - 1e-9,
        "ties": null > observed + 1e-9,
        "below": null <= observed + 1e-9,
    }[p].sum(0)
    return observed, null, (count / permutations if p == "zero" else (1 + count) / (1 + permutations))


def by_words(tokens, chosen, document, experts, *, kind=None, scale=1.0, ranks=None):
    kind = tokens if kind is None else kind(tokens, document)
    one_hot = F.one_hot(chosen[:, :ranks], experts).double().sum(1)
    average = torch.stack([one_hot[kind == own].mean(0) for own in kind])
    return torch.stack([average[document == d].sum(0) for d in range(int(document.max()) + 1)]) * scale


def repeated(first, *, padding=False, across=False, chance=None, load_padding=False):
    rows = [row[row >= 0] for row in first] if not padding else list(first)
    pairs = [torch.cat(rows)] if across else rows
    same = torch.cat([row[1:] == row[:-1] for row in pairs])
    values = first.flatten() if load_padding else first[first >= 0]
    load = torch.unique(values, return_counts=True)[1].double() / len(values)
    return same.double().mean().item(), float(load.square().sum()) if chance is None else chance(first)


WRONG = [
    (lab_2_4_3.parameter_parts, faulty(parts, active=lambda E: E), "total and active differ"),
    (lab_2_4_3.parameter_parts, faulty(parts, active=lambda E: 1), "not one"),
    (
        lab_2_4_3.parameter_parts,
        faulty(parts, words={"routed": ("experts.",)}.items(), order=ROUTED_FIRST),
        "always on",
    ),
    (lab_2_4_3.parameter_parts, faulty(parts, words={"router": (".gate", ".experts.gate")}.items()), "is no router"),
    (lab_2_4_3.parameter_parts, faulty(parts, words={"router": (".gate.weight",)}.items()), ".router.weight too"),
    (lab_2_4_3.record, faulty(recorded, where="gate_proj"), "hooks on gate_proj"),
    (lab_2_4_3.record, lambda model, ids, mask: {}, "one fused module"),
    (lab_2_4_3.record, faulty(recorded, padding=0), "padding is dispatched too"),
    (lab_2_4_3.record, faulty(recorded, where="router"), "selection bias comes after them"),
    (lab_2_4_3.record, faulty(recorded, remove=False), "still has a hook on it"),
    (lab_2_4_3.document_counts, faulty(counted, padding=True), "Padding was counted"),
    (lab_2_4_3.document_counts, faulty(counted, ranks=1), "not the first alone"),
    (lab_2_4_3.document_counts, faulty(counted, over=1), "a sum over layers means nothing"),
    (lab_2_4_3.mutual_information, faulty(information, bits=True), "Those are bits"),
    (lab_2_4_3.mutual_information, faulty(information, uniform=True), "not 1 / E"),
    (lab_2_4_3.mutual_information, faulty(information, safe=False), "got nan"),
    (lab_2_4_3.mutual_information, faulty(information, over=(0, 1, 2)), "normalised by itself"),
    (lab_2_4_3.permutation_test, faulty(permuted, unit="token"), "no null over tokens"),
    (lab_2_4_3.permutation_test, faulty(permuted, unit="replaced"), "drawn with replacement"),
    (lab_2_4_3.permutation_test, faulty(permuted, p="zero"), "p is never 0"),
    (lab_2_4_3.permutation_test, faulty(permuted, p="ties"), ">=, not >"),
    (lab_2_4_3.permutation_test, faulty(permuted, p="below"), "at least as large"),
    (lab_2_4_3.permutation_test, faulty(permuted, once=True), "anew for each permutation"),
    (lab_2_4_3.expected_by_token, faulty(by_words, scale=0.5), "k times the tokens"),
    (lab_2_4_3.expected_by_token, faulty(by_words, kind=lambda t, d: t * 0), "the load of all tokens"),
    (lab_2_4_3.expected_by_token, faulty(by_words, kind=lambda t, d: torch.arange(len(t))), "own counts"),
    (lab_2_4_3.expected_by_token, faulty(by_words, kind=lambda t, d: t + 10 * d), "own counts"),
    (lab_2_4_3.expected_by_token, faulty(by_words, ranks=1), "not the first alone"),
    (lab_2_4_3.repetition, faulty(repeated, padding=True), "-1 next to -1"),
    (lab_2_4_3.repetition, faulty(repeated, across=True), "are no neighbours"),
    (lab_2_4_3.repetition, faulty(repeated, padding=True, across=True), "are no neighbours"),
    (lab_2_4_3.repetition, faulty(repeated, chance=lambda first: 1 / (1 + int(first.max()))), "1 / E is chance only"),
    (lab_2_4_3.repetition, faulty(repeated, load_padding=True), "leave -1 out of the load"),
]

RIGHT = {
    lab_2_4_3.parameter_parts: parts,
    lab_2_4_3.record: recorded,
    lab_2_4_3.document_counts: counted,
    lab_2_4_3.mutual_information: information,
    lab_2_4_3.permutation_test: permuted,
    lab_2_4_3.expected_by_token: by_words,
    lab_2_4_3.repetition: repeated,
}
