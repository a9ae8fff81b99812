"""Known-wrong answers of lab 2.4.3."""

import itertools
import math
from collections import Counter

import numpy as np
import pandas as pd
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


def by_numpy(shapes, top_k):
    found = {part: [0.0, 0.0] for part in (*ROUTED_FIRST, "other")}
    for name, shape in shapes.items():
        part = next(part for part, pair in parts({name: shape}, top_k).items() if pair[0])
        size = np.prod(shape)
        found[part] = found[part][0] + size, found[part][1] + (size * top_k / shape[0] if part == "routed" else size)
    return found


def by_patch(model, input_ids, attention_mask, *, restore=True):
    """Another forward in the place of a hook."""
    found, before = {}, {}
    for layer, module in experts.experts_modules(model).items():

        def see(hidden, chosen, weights, layer=layer, forward=module.forward):
            found[layer] = chosen.clone()
            return forward(hidden, chosen, weights)

        before[layer], module.forward = module.forward, see
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        for layer, module in experts.experts_modules(model).items() if restore else ():
            module.forward = before[layer]
    keep = attention_mask.bool()[..., None]
    return {layer: torch.where(keep, c.view(*keep.shape[:2], -1), -1) for layer, c in found.items()}


def by_capture(model, input_ids, attention_mask):
    with experts.capture(model) as trace:
        model(input_ids=input_ids, attention_mask=attention_mask)
    return trace.indices


def counted_one_by_one(indices, experts):
    counts = np.zeros((len(next(iter(indices.values()))), len(indices), experts))
    for layer, chosen in enumerate(indices.values()):
        for document, row in enumerate(chosen):
            for expert, times in Counter(row.flatten().tolist()).items():
                counts[document, layer, expert] += times if expert >= 0 else 0
    return counts


def by_entropies(table):
    p = table / table.sum((-2, -1), keepdim=True)
    of = lambda p, axes: -torch.xlogy(p, p).sum(axes)  # noqa: E731
    return of(p.sum(-1), -1) + of(p.sum(-2), -1) - of(p, (-2, -1))


def by_loops(table):
    found = []
    for one in table.reshape(-1, *table.shape[-2:]).double().numpy():
        d, e = one.nonzero()
        apart = one.sum(1)[d] * one.sum(0)[e] / one.sum()
        found.append(sum(one[d, e] * np.log(one[d, e] / apart)) / one.sum())
    return torch.tensor(found).reshape(table.shape[:-2])


def at_once(counts, labels, statistic, permutations, generator):
    orders = torch.rand(permutations, len(labels), generator=generator).argsort(1)
    member = F.one_hot(labels[torch.cat([torch.arange(len(labels))[None], orders])]).to(counts)
    values = statistic(torch.einsum("rnd,n...e->r...de", member, counts))
    return values[0], values[1:], (values >= values[0]).double().mean(0)


def shuffled_on(counts, labels, statistic, permutations, generator):
    """Each order from the one before; numpy's stream, begun with a number of the generator's."""
    rng = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
    D, order, values = int(labels.max()) + 1, labels.numpy().copy(), []
    for _ in range(1 + permutations):
        values.append(statistic(torch.stack([counts[order == d].sum(0) for d in range(D)], -2)).numpy())
        rng.shuffle(order)
    observed, null = values[0], np.array(values[1:])
    extreme = (null >= observed) | np.isclose(null, observed)
    return [observed, null, (1 + extreme.sum(0)) / (1 + permutations)]


def in_frames(tokens, chosen, document, experts):
    choices = pd.DataFrame(F.one_hot(chosen, experts).sum(1).numpy())
    return choices.groupby(tokens.numpy()).transform("mean").groupby(document.numpy()).sum().to_numpy()


def by_kind_of_token(tokens, chosen, document, experts, *, own=lambda mean, n, choices: mean):
    """One document at a time, from a table with a row for each kind; `own` changes the mean of a kind."""
    kinds, kind = tokens.unique(return_inverse=True)
    one_hot = F.one_hot(chosen, experts).sum(1).float()
    means = [own(one_hot[kind == n].mean(0), int((kind == n).sum()), one_hot[kind == n]) for n in range(len(kinds))]
    means = torch.stack(means)
    return [means[kind[document == d]].sum(0) for d in range(int(document.max()) + 1)]


def one_by_one(first):
    same, pairs, load = 0, 0, Counter()
    for row in first.tolist():
        row = [e for e in row if e != -1]
        load.update(row)
        same += sum(a == b for a, b in itertools.pairwise(row))
        pairs += len(row) - 1
    return same / pairs, sum((n / load.total()) ** 2 for n in load.values())


def within(first):
    """What a repetition without a fault gives, in float32 and as one tensor."""
    both = first[:, 1:] >= 0
    load = F.one_hot(first[first >= 0]).float().mean(0)
    return torch.stack([(first.diff(dim=1) == 0)[both].float().mean(), load @ load])


def emptied(function):
    """The right result, after which the first argument is another."""

    def spoiling(first, *rest):
        result = function(first, *rest)
        first.clear() if isinstance(first, dict) else first.fill_(0)
        return result

    return spoiling


def then(function, change):
    """The right result, changed: the change is called with it and with the arguments."""
    return lambda *args: change(function(*args), *args)


def each(change):
    """The change on every value of a dict."""
    return lambda found, *args: {key: change(value) for key, value in found.items()}


def p_as(share):
    def result(found, *args):
        observed, null, _ = found
        return observed, null, share(observed, null)

    return result


def drawn(draw):
    """A permutation test whose labels are drawn in another way: by a function of labels and generator."""

    def test(counts, labels, statistic, permutations, generator):
        D = int(labels.max()) + 1
        of = lambda l: statistic(torch.stack([counts[l == d].sum(0) for d in range(D)], -2))  # noqa: E731, E741
        observed, null = of(labels), torch.stack([of(draw(labels, generator)) for _ in range(permutations)])
        return observed, null, (1 + (null >= observed).sum(0)) / (1 + permutations)

    return test


def with_the_observed(counts, labels, statistic, permutations, generator):
    first = [True]

    def draw(labels, generator):
        order = torch.randperm(len(labels), generator=generator)
        return labels if first and first.pop() else labels[order]

    return drawn(draw)(counts, labels, statistic, permutations, generator)


def swapped(labels, generator):
    i, j = torch.randint(len(labels), (2,), generator=generator)
    labels = labels.clone()
    labels[i], labels[j] = labels[j].clone(), labels[i].clone()
    return labels


def rolled(labels, generator):
    return labels.roll(int(torch.randint(len(labels), (), generator=generator)))


def seeded(seed):
    return lambda counts, labels, statistic, n, generator: permuted(
        counts, labels, statistic, n, torch.Generator().manual_seed(seed())
    )


def words_of(tokens=lambda t, d: t, chosen=lambda c: c, document=lambda d: d, experts=lambda E, c: E):
    """The right rule on other arguments."""
    return lambda t, c, d, E: by_words(tokens(t, d), chosen(c), document(d), experts(E, c))


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

WRONG += [
    (lab_2_4_3.parameter_parts, wrong, words)
    for wrong, words in (
        (faulty(parts, active=lambda E: 2), "top_k = 1"),
        (lambda shapes, top_k: parts(shapes, 2), "top_k = 1"),
        (then(parts, lambda p, s, k: p | {"routed": (p["routed"][0], p["routed"][0] * k / 6)}), "without shared"),
        (then(parts, lambda p, *_: {part: pair for part, pair in p.items() if pair[0]}), "without shared experts"),
        (then(parts, each(lambda pair: pair[::-1])), "routed, total and active"),
        (then(parts, each(str)), "expected"),
        (then(parts, lambda p, *_: p | {"other": (0, 0)}), "dense layers and norms"),
        (lambda shapes, k: parts({n: s for n, s in shapes.items() if len(s) > 1}, k), "attention"),
        (faulty(parts, words={"attention": ("self_attn.", "attention")}.items()), "attention"),
        (faulty(parts, words={"embedding": ("embed_tokens",)}.items()), "lm_head belongs"),
        (faulty(parts, total=lambda size, E: size // E), "routed"),
        (emptied(parts), "was changed"),
    )
]
WRONG += [
    (lab_2_4_3.record, wrong, words)
    for wrong, words in (
        (faulty(recorded, remove=True), "after a forward that raised an error"),
        (faulty(by_patch, restore=False), "forward of yours"),
        (faulty(recorded, masked=False), "padding at the left"),
        (faulty(recorded, padding=-100), "write -1"),
        (lambda model, ids, mask: recorded(model, ids, (ids > 0).long()), "padding"),
        (lambda model, ids, mask: recorded(model.eval(), ids, mask), "another mode"),
        (lambda model, ids, mask: recorded(model.requires_grad_(False), ids, mask), "requires_grad"),
        (then(recorded, lambda found, model, ids, mask: (mask.fill_(1), found)[1]), "`attention_mask` was changed"),
        (then(recorded, each(lambda chosen: chosen[..., :2])), "expected a tensor"),
        (then(recorded, each(lambda chosen: chosen.flatten(0, 1))), "expected a tensor"),
        (then(recorded, each(lambda chosen: chosen.clamp(max=3))), "expected"),
        (then(recorded, lambda found, *_: dict(enumerate(found.values()))), "in layers [1, 2]"),
        (then(recorded, lambda found, *_: dict.fromkeys(found, found[max(found)])), "expected"),
        (then(recorded, lambda found, *_: list(found.values())), "expected a dict"),
    )
]
WRONG += [
    (lab_2_4_3.document_counts, wrong, words)
    for wrong, words in (
        (faulty(counted, ranks=2), "k = 3"),
        (lambda indices, experts: counted(indices, 5), "expected the shape"),
        (lambda indices, E: counted(indices, 1 + max(int(c.max()) for c in indices.values())), "expected the shape"),
        (lambda indices, E: counted(dict(sorted(indices.items())), E), "in the order of `indices`"),
        (lambda indices, E: counted({n: c[:, :-1] for n, c in indices.items()}, E), "expected"),
        (lambda indices, E: counted({n: c.clamp(min=0) for n, c in indices.items()}, E), "expected"),
        (then(counted, lambda counts, *_: counts.transpose(0, 1)), "Documents first"),
        (then(counted, lambda counts, *_: counts[:, :2]), "expected the shape"),
        (then(counted, lambda counts, *_: counts[:2]), "expected the shape"),
        (then(counted, lambda counts, *_: (counts > 0).long()), "expected"),
        (then(counted, lambda counts, *_: counts / counts.sum(-1, keepdim=True)), "expected"),
        (then(counted, lambda counts, *_: counts.cumsum(1)), "expected"),
        (emptied(counted), "was changed"),
    )
]
WRONG += [
    (lab_2_4_3.mutual_information, wrong, words)
    for wrong, words in (
        (lambda table: information(table / table.sum(-1, keepdim=True)), "not of each row"),
        (lambda table: information(table / table.sum(-2, keepdim=True).clamp(min=1)), "expected"),
        (lambda table: information(table + 1e-3), "expected"),
        (lambda table: information(table.reshape(table.shape[0], *table.shape[-2:])), "your code raised"),
        (lambda table: torch.stack([information(one) for one in table]), "your code raised"),
        (then(information, lambda found, table: -found), "expected"),
        (then(information, lambda found, table: found / math.log(table.shape[-1])), "expected"),
        (then(information, lambda found, table: found.sum()), "expected the shape"),
        (then(information, lambda found, table: found.round(decimals=3)), "expected"),
        (faulty(information, safe=False), "an empty cell adds nothing"),
        (lambda table: faulty(information, safe=False)(table).nan_to_num(0), "expected"),
        (lambda table: information(table.view(*table.shape[:-2], -1).view(table.shape)), "view"),
        (emptied(information), "was changed"),
    )
]
WRONG += [
    (lab_2_4_3.permutation_test, wrong, words)
    for wrong, words in (
        (drawn(rolled), "5 come"),
        (with_the_observed, "begins with the observed labels"),
        (drawn(swapped), "as likely as any other"),
        (drawn(lambda labels, generator: labels.flip(0)), "hardly varies"),
        (drawn(lambda labels, generator: torch.randint(2, labels.shape, generator=generator)), "with replacement"),
        (drawn(lambda labels, generator: labels[torch.randperm(len(labels))]), "twice the same seed"),
        (seeded(lambda: 0), "another seed gave the same null"),
        (seeded(lambda: torch.seed()), "twice the same seed"),
        (lambda c, labels, s, n, g: permuted(c, labels, s, 400, g), "expected a null of shape"),
        (lambda c, labels, s, n, g: permuted(c.flatten(1)[:, None], labels, s, n, g), "observed"),
        (lambda c, labels, s, n, g: permuted(c.round(), labels, s, n, g), "used and expected"),
        (lambda c, labels, s, n, g: permuted(c, labels.clamp(max=1), s, n, g), "one document per domain"),
        (then(permuted, p_as(lambda o, null: (1 + (null >= o).sum(0)) / len(null))), "p of the null"),
        (then(permuted, p_as(lambda o, null: (1 + (null >= o).sum(0)) / 401)), "p of the null"),
        (then(permuted, p_as(lambda o, null: (1 + (null >= o).sum()) / (1 + len(null)))), "p of the null"),
        (then(permuted, p_as(lambda o, null: torch.special.ndtr((null.mean(0) - o) / null.std(0)))), "p of the null"),
        (then(permuted, lambda found, *_: found[:2]), "three tensors"),
        (then(permuted, lambda found, *_: (found[0], found[1].mean(0), found[2])), "expected a null of shape"),
        (then(permuted, lambda found, c, labels, *_: (labels.copy_(labels.flip(0)), found)[1]), "`labels` was changed"),
    )
]
WRONG += [
    (lab_2_4_3.expected_by_token, wrong, words)
    for wrong, words in (
        (words_of(chosen=lambda c: c[:, :2]), "k = 3"),
        (words_of(experts=lambda E, c: 4), "expected the shape"),
        (words_of(experts=lambda E, c: int(c.max()) + 1), "expected the shape"),
        (words_of(tokens=lambda t, d: t.clamp(max=63)), "50,000 kinds"),
        (words_of(document=lambda d: d.sort().values), "mixed order"),
        (then(by_words, lambda found, *_: found[:2]), "expected the shape"),
        (then(by_words, lambda found, *_: found.round()), "expected"),
        (then(by_words, lambda found, t, c, d, E: found / torch.bincount(d)[:, None]), "expected"),
        (faulty(by_kind_of_token, own=lambda mean, n, choices: choices.median(0).values), "expected"),
        (faulty(by_kind_of_token, own=lambda mean, n, choices: mean * n / (n + 1)), "expected"),
        (faulty(by_kind_of_token, own=lambda mean, n, choices: choices[0]), "expected"),
        (emptied(by_words), "was changed"),
    )
]
WRONG += [
    (lab_2_4_3.repetition, wrong, words)
    for wrong, words in (
        (faulty(repeated, chance=lambda first: 1 / 4), "1 / E is chance only"),
        (faulty(repeated, chance=lambda first: 1.0), "square each"),
        (faulty(repeated, chance=lambda first: repeated(first[:1])[1]), "share by chance"),
        (faulty(repeated, chance=lambda first: math.sqrt(repeated(first)[1])), "share by chance"),
        (faulty(repeated, chance=lambda first: round(repeated(first)[1], 2)), "share by chance"),
        (lambda first: repeated(first[:1]), "share of neighbours"),
        (lambda first: repeated(first.view(-1)[None]), "are no neighbours"),
        (lambda first: (repeated(first)[0], repeated(first.view(-1)[None])[1]), "view"),
        (lambda first: np.mean([one_by_one(row[None]) for row in first if row[1] >= 0], 0), "All pairs count alike"),
        (then(repeated, lambda found, first: found[::-1]), "share of neighbours"),
        (then(repeated, lambda found, first: found[0]), "two numbers"),
        (then(repeated, lambda found, first: (found[0] - found[1], found[1])), "share of neighbours"),
        (emptied(repeated), "was changed"),
    )
]

RIGHT = {
    lab_2_4_3.parameter_parts: [
        parts,
        by_numpy,
        then(parts, each(list)),
        then(parts, each(torch.tensor)),
        then(parts, lambda found, *_: dict(sorted(found.items()))),
    ],
    lab_2_4_3.record: [
        recorded,
        by_patch,
        by_capture,
        then(recorded, each(lambda chosen: chosen.flip(-1).int())),
        then(recorded, each(lambda chosen: chosen.numpy())),
        then(recorded, each(lambda chosen: chosen.tolist())),
    ],
    lab_2_4_3.document_counts: [
        counted,
        counted_one_by_one,
        then(counted, lambda counts, *_: counts.float()),
        then(counted, lambda counts, *_: counts.tolist()),
        lambda indices, E: (torch.stack([*indices.values()], 1)[..., None] == torch.arange(E)).sum((2, 3)),
    ],
    lab_2_4_3.mutual_information: [
        information,
        by_entropies,
        by_loops,
        lambda table: information(table.float()),
        lambda table: by_entropies(table).numpy(),
    ],
    lab_2_4_3.permutation_test: [
        permuted,
        at_once,
        shuffled_on,
        drawn(lambda labels, generator: labels[torch.randperm(len(labels), generator=generator)]),
        then(permuted, lambda found, *_: [part.float().tolist() for part in found]),
    ],
    lab_2_4_3.expected_by_token: [
        by_words,
        in_frames,
        by_kind_of_token,
        then(by_words, lambda found, *_: found.float()),
        then(by_words, lambda found, *_: found.tolist()),
    ],
    lab_2_4_3.repetition: [
        repeated,
        one_by_one,
        within,
        then(repeated, lambda found, first: np.array(found)),
        then(repeated, lambda found, first: list(map(torch.tensor, found))),
    ],
}
