"""Checks of lab 2.4.3: cases of many sizes and those of the lab, and the usual mistakes by name."""

import itertools
import math
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from functools import partial

import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM

from shared import experts
from shared.checks import Wrong, agree, as_tensor, case, exercise, expect, shown, unpacked
from shared.checks.watch import changed, traces
from shared.kits import routing
from shared.models.sizes import published_config, shapes


def _seeded(random) -> torch.Generator:
    return torch.Generator().manual_seed(random.randrange(2**31))


def _draw(generator, E: int, k: int, *rows: int) -> torch.Tensor:
    """K different experts of E for each token, (*rows, k)."""
    return torch.rand(*rows, E, generator=generator).topk(k).indices


def _ends(generator, N: int, T: int) -> torch.Tensor:
    """Which tokens of N documents are real, (N, T): at least one of each, and all of the first."""
    lengths = torch.randint(1, T + 1, (N, 1), generator=generator)
    lengths[0] = T
    return torch.arange(T) < lengths


def _routed(generator, N: int, T: int, E: int, k: int) -> torch.Tensor:
    """Experts of N documents, (N, T, k), -1 at padding. As in the lab it is cut from a larger tensor."""
    chosen = _draw(generator, E, k, N, T + 1)[:, 1:]
    chosen[~_ends(generator, N, T)] = -1
    return chosen


# ---- parameter_parts ---------------------------------------------------------------------------------------------

MARKS = {
    "embedding": ("embed_tokens", "lm_head"),
    "attention": ("self_attn.",),
    "router": (".gate.weight", ".router.weight"),
    "shared": (".shared_experts.",),
    "routed": (".experts.",),
}


def _model(E: int, d: int, layers=range(2)) -> dict[str, torch.Size]:
    """A dense layer and a mixture as transformers names them. Hardly two sizes are the same."""
    found = {"model.embed_tokens.weight": (50, d), "lm_head.weight": (49, d), "model.norm.weight": (d,)}
    found |= {"model.layers.0.mlp.gate_proj.weight": (11, d), "model.layers.0.mamba.A_log": (d, 16)}
    for n in layers:
        parts = {
            "self_attn.q_proj.weight": (d, d),
            "self_attn.o_proj.weight": (d, d + 1 + n),
            "self_attn.q_norm.weight": (d,),
            "mlp.gate.weight" if n % 2 else "feed_forward.router.weight": (E, d + 2),
            "mlp.experts.gate_up_proj": (E, 14, d),
            "mlp.experts.down_proj": (E, d, 7 + n),
            "mlp.shared_experts.gate_proj.weight": (3, d),
            "post_attention_layernorm.weight": (d,),
        }
        found |= {f"model.layers.{n + 1}.{name}": shape for name, shape in parts.items()}
    return {name: torch.Size(shape) for name, shape in found.items()}


def _parts(rule=lambda size, E, k: (size, size // E * k), **words):
    """A count by part that may have other words, or another rule for routed experts."""
    marks = MARKS | words

    def count(shapes, top_k):
        found = dict.fromkeys((*MARKS, "other"), (0, 0))
        for name, shape in shapes.items():
            part = next((p for p in marks if any(m in name for m in marks[p])), "other")
            size = shape.numel()
            total, active = rule(size, shape[0], top_k) if part == "routed" else (size, size)
            found[part] = found[part][0] + total, found[part][1] + active
        return found

    return count


@exercise("2.4.3", "ex-parameter-parts")
def parameter_parts(answer, random):
    few = {name: shape for name, shape in _model(5, 3).items() if "shared" not in name and "lm_head" not in name}
    cases = [case(f"a small model of 6 experts, top_k = {k}", _model(6, 4), k) for k in (2, 1, 6)]
    cases.append(case("a model without shared experts, its embedding tied", few, 2))
    for _ in range(3):
        E, d, n = random.randint(3, 9), random.randint(3, 9), random.randint(1, 12)
        k = random.randint(1, E)
        cases.append(case(f"{E} experts in {n} layers, top_k = {k}", _model(E, d, range(n)), k))
    for name in ("jamba-v0.1", "deepseek-moe-16b", "olmoe-1b-7b"):
        cases.append(case(name, shapes(name), published_config(name).num_experts_per_tok))
    no_shared = _parts(routed=("experts.",), shared=("nothing",))
    all_work = _parts(lambda size, E, k: (size, size))
    no_other = lambda shapes, k: answer.own(shapes, k) | {"other": (0, 0)}  # noqa: E731
    mistakes = {
        "Every expert is in memory and top_k of them work for a token: total and active differ.": all_work,
        "top_k experts work for a token, not one.": _parts(lambda size, E, k: (size, size // E)),
        "The shared expert is always on: .shared_experts. is a part of its own, not routed.": no_shared,
        "gate_up_proj is no router: look for .gate.weight and .router.weight.": _parts(router=(".gate", ".router")),
        "All experts are in memory: the total counts each of them.": _parts(lambda size, E, k: (size // E * k,) * 2),
        "A router may be called .router.weight too.": _parts(router=(".gate.weight",)),
        "lm_head belongs to the embeddings too.": _parts(embedding=("embed_tokens",)),
        "What no other part has is other: dense layers and norms.": no_other,
    }
    for one in cases:
        came, right = one.of(answer), one.of(answer.own)
        if not isinstance(came, Mapping) or set(came) != set(right):
            expect(came, right, one.what)
        for part in sorted(right, key=lambda part: part != "routed"):
            wrong = {why: lambda f=f, one=one, part=part: one.of(f)[part] for why, f in mistakes.items()}
            expect(came[part], right[part], f"{part}, total and active, of {one.what}", wrong)
    return "all experts are in memory, top_k of them work, everything else always works."


# ---- record ------------------------------------------------------------------------------------------------------

VOCABULARY = 40


def _small_models():
    """Sparse layers; the second model also has a dense one, a shared expert and a bias in its selection."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": VOCABULARY}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    experts = {"n_routed_experts": 6, "n_shared_experts": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    experts |= {"n_group": 1, "topk_group": 1, "num_experts_per_tok": 3}
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        few = MixtralForCausalLM(MixtralConfig(**size, num_local_experts=5, num_experts_per_tok=2))
        many = DeepseekV3ForCausalLM(DeepseekV3Config(**size, **experts, **heads))
        for model in (few, many):
            for router in routing.routers(model.eval()).values():
                torch.nn.init.normal_(router.weight)
                if hasattr(router, "e_score_correction_bias"):
                    router.e_score_correction_bias.normal_()
    return few, many


@torch.no_grad()
def _topk_of_logits(model, batch) -> dict:
    """What one gets from the routers' logits, which is the choice only where nothing comes after them."""
    found, hooks = {}, []
    for layer, router in routing.routers(model).items():

        def see(module, args, layer=layer):
            logits = F.linear(args[0].reshape(-1, args[0].shape[-1]).float(), module.weight.float())
            chosen = logits.topk(model.config.num_experts_per_tok).indices
            found[layer] = chosen.reshape(*batch["input_ids"].shape, -1)

        hooks.append(router.register_forward_pre_hook(see))
    model(**batch)
    for hook in hooks:
        hook.remove()
    return found


@exercise("2.4.3", "ex-record")
def record(answer, random):
    few, many = _small_models()
    generator = _seeded(random)
    ids = torch.randint(0, VOCABULARY, (4, 7), generator=generator)
    ids[:, :2] = 0  # a token like any other: the mask says what is padding
    right = _ends(generator, 4, 7).long()
    runs = [
        ("a small Mixtral", few, ids[:2, :6], torch.tensor([[1] * 6, [1, 1, 1, 0, 0, 0]]), nullcontext),
        ("a small DeepSeek-V3", many, ids, right, nullcontext),
        ("a small Mixtral, padding at the left", few, ids, right.flip(1), torch.inference_mode),
        ("a small DeepSeek-V3, one token", many.train(), ids[:1, 2:3], right[:1, :1], nullcontext),
    ]
    for what, model, input_ids, mask, mode in runs:
        batch = {"input_ids": input_ids, "attention_mask": mask}
        with torch.no_grad(), experts.capture(model) as trace:
            model(**batch)
        with mode():
            came = answer(model, input_ids.clone(), mask.clone())
        _recorded(came, trace.indices, what, _topk_of_logits(model, batch))
    before = traces(few)
    with suppress(Exception):  # no token has this number
        answer(few, ids[:1] + VOCABULARY, right[:1])
    if left := changed(before, traces(few)):
        raise Wrong(f"after a forward that raised an error, the model {left}")
    return "what is dispatched, where it is dispatched, without padding, and no hook stays."


def _recorded(came, right: dict, what: str, topk: dict) -> None:
    if not isinstance(came, Mapping):
        raise Wrong(f"{what}: expected a dict, layer -> (B, T, k), got {shown(came)}.")
    if set(came) != set(right):
        raise Wrong(
            f"{what} with experts in layers {sorted(right)}: got layers {list(came)}. The experts of a layer "
            "are one fused module: hooks on gate_proj or on single experts see a dense layer, a shared expert or "
            "nothing. Hook the modules of experts.experts_modules(model)."
        )
    for layer, chosen in right.items():
        value = as_tensor(came[layer])
        if value is None or value.shape != chosen.shape:
            raise Wrong(f"{what}, layer {layer}: expected a tensor {tuple(chosen.shape)}, got {shown(came[layer])}.")
        padding = chosen[..., 0] < 0
        if (value[padding] != -1).any():
            raise Wrong(f"{what}, layer {layer}: padding is dispatched too, and must not count: write -1 for it.")
        why = "Those are the top k of the router's logits: a selection bias comes after them. Record the indices."
        in_order = lambda chosen, real=~padding: chosen[real].sort().values  # noqa: E731
        mistakes = {why: in_order(topk[layer])}
        expect(in_order(value), in_order(chosen), f"{what}, layer {layer}, the experts of each real token", mistakes)


# ---- document_counts ---------------------------------------------------------------------------------------------


def _counted(indices, E, padding=False, ranks=None):
    layers = [chosen[..., :ranks] for chosen in indices.values()]
    return torch.stack([(F.one_hot(c % E, E) * (padding | (c >= 0))[..., None]).sum((1, 2)) for c in layers], 1)


def _counted_in_order(indices, E):
    return _counted(dict(sorted(indices.items())), E)


@exercise("2.4.3", "ex-document-counts")
def document_counts(answer, random):
    first = torch.tensor([[[0, 2], [2, 1], [0, 1]], [[3, 0], [3, 1], [-1, -1]]])
    second = torch.tensor([[[1, 0], [1, 3], [3, 1]], [[2, 1], [0, 2], [-1, -1]]])
    cases = [
        case("2 documents, 2 layers, 5 experts", {3: first, 1: second}, 5),
        case("a document of one token, one expert per token", {0: torch.tensor([[[2]]])}, 3),
    ]
    generator = _seeded(random)
    for N, T, L, E, k in ((3, 4, 1, 6, 3), (5, 9, 3, 4, 4), (1, 30, 2, 16, 2), (10, 21, 4, 64, 8)):
        layers = random.sample(range(30), L)
        indices = {n: _routed(generator, N, T, E, k) for n in layers}
        what = f"{N} documents of up to {T} tokens, layers {layers}, {E} experts, k = {k}"
        cases.append(case(what, indices, E))
    cases.append(case("the first experts alone", {n: chosen[..., :1] for n, chosen in indices.items()}, E))
    padded = partial(_counted, padding=True)
    mistakes = {
        "Padding was counted: index -1 is no expert, and must not end up in the last one.": padded,
        "All k experts of a token count, not the first alone.": partial(_counted, ranks=1),
        "Keep the layers apart: expert 3 of one layer has nothing to do with expert 3 of another, so a sum over layers "
        "means nothing.": lambda indices, E: _counted(indices, E).sum(1),
        "The layers come in the order of `indices`, sorted or not.": _counted_in_order,
        "Documents first: (N, L, E).": lambda indices, E: _counted(indices, E).transpose(0, 1),
    }
    agree(answer, cases, mistakes)
    return "per document, per layer, per expert, without padding."


# ---- mutual_information ------------------------------------------------------------------------------------------


def _information(table, uniform=False, over=lambda table: table.sum((-2, -1), keepdim=True)):
    p = table / over(table)
    apart = p.sum(-1, keepdim=True) * (1 / table.shape[-1] if uniform else p.sum(-2, keepdim=True))
    return (p * torch.where(p > 0, (p / apart).log(), 0)).sum((-2, -1))


@exercise("2.4.3", "ex-mutual-information")
def mutual_information(answer, random):
    two = torch.tensor([[[8.0, 0, 4, 2], [1, 6, 3, 5]], [[2.0, 4, 6, 8], [4, 8, 12, 16]]], dtype=torch.float64)
    cases = [
        case("a table of 2 domains and 4 experts, and one whose domains agree", two),
        case("one table", two[0]),
        case("a table of which every domain has an expert of its own", torch.eye(3, dtype=torch.float64)),
        case("an expert and a domain without a choice", F.pad(two[0], (1, 0, 0, 1))),
    ]
    generator = _seeded(random)
    for shape in ((1, 4), (3, 1), (2, 5, 3), (2, 3, 4, 2), (2, 1, 2, 7, 16), (200, 16)):
        table = torch.rand(*shape, generator=generator, dtype=torch.float64).mul(30).pow(2).floor()
        table = (table - 100).clamp(min=0)
        table[..., 0, :] += 1
        cases.append(case(f"shape {shape}", table))
    by_domain = torch.einsum("nd,nle->lde", F.one_hot(torch.arange(9) % 4, 4).double(), torch.ones(9, 3, 5).double())
    cases.append(case("tables as the lab makes them, not contiguous", by_domain * (1 + torch.arange(5))))
    by_rows = lambda table: _information(table / table.sum(-1, keepdim=True))  # noqa: E731
    value = as_tensor(cases[0].of(answer))
    if value is not None and value.isnan().any():
        raise Wrong(
            "got nan: an empty cell adds nothing. 0 log 0 is 0 (torch.xlogy knows), and 0 / 0 must not be made."
        )
    mistakes = {
        "Those are bits: nats have the natural logarithm.": lambda table: _information(table) / math.log(2),
        "The baseline is the load that each expert has over all domains, not 1 / E.": partial(
            _information, uniform=True
        ),
        "Each table is normalised by itself: sum over its last two dimensions only.": partial(
            _information, over=torch.sum
        ),
        "Divide by the sum of the table, not of each row: a domain weighs as much as it has choices.": by_rows,
    }
    agree(answer, cases, mistakes)
    return "0 where domains use experts alike; the load itself, even or not, is no information."


# ---- permutation_test --------------------------------------------------------------------------------------------


def _gap(tables):
    """How far the domains' counts are apart, in whole numbers: equal tables give equal values, whatever the order."""
    return (tables[..., :, None, :] - tables[..., None, :, :]).square().sum((-3, -2, -1))


def _from_expected(tables):
    """The same between two kinds of counts, (..., 2, L, D, E), as the lab compares those used and those expected."""
    used, expected = tables.unbind(-4)
    return _gap(used) + (used - expected).square().sum((-2, -1))


@exercise("2.4.3", "ex-permutation-test")
def permutation_test(answer, random):
    counts = torch.tensor([[[9, 1, 2], [3, 3, 4]], [[7, 2, 1], [5, 1, 4]], [[2, 6, 3], [1, 8, 2]],
                           [[1, 5, 7], [0, 4, 7]], [[3, 3, 8], [2, 9, 1]]], dtype=torch.float64)  # fmt: skip
    generator = _seeded(random)
    more = torch.randint(0, 40, (7, 2, 3, 4), generator=generator).double() / 4
    runs = [
        ("5 documents of 2 domains", counts, [0, 0, 0, 1, 1], _gap, 400),
        ("one layer, without a dimension for it", counts[:, 0], [1, 0, 1, 0, 0], _gap, 20),
        ("one document per domain", counts[:3], [0, 1, 2], _gap, 99),
        ("7 documents of 3 domains, used and expected counts", more, [2, 0, 1, 0, 1, 0, 0], _from_expected, 30),
        ("7 documents of 4 domains", more[:, 0], [0, 3, 1, 2, 0, 1, 0], _gap, 1),
    ]
    for what, its, labels, statistic, n in runs:
        seed, labels = random.randrange(2**31), torch.tensor(labels)
        test = partial(_tested, answer, what, its, labels, statistic, n)
        null, again, other = test(seed), test(seed), test(seed + 1)
        if not again.equal(null):
            raise Wrong("twice the same seed gave two different nulls: draw the relabellings with `generator`.")
        if n == 400 and other.equal(null):
            raise Wrong("another seed gave the same null: draw the relabellings with `generator` as it comes.")
        observed = _tables(its, labels, statistic)(labels.tolist())
        if n == 1 and null[0].equal(observed) and other[0].equal(observed):
            raise Wrong("the null begins with the observed labels, which the 1 in (1 + ...) counts already.")
    return "documents keep their tokens together and trade labels; p counts the observed one."


def _tables(counts, labels, statistic):
    """The statistic as a function of other labels, in a list."""
    D = int(labels.max()) + 1

    def of(labels):
        labels = torch.tensor(labels)
        return statistic(torch.stack([counts[labels == d].sum(0) for d in range(D)], dim=-2))

    return of


def _tested(answer, what: str, counts, labels, statistic, n: int, seed: int):
    """The null that an answer gives, once it, the observed values and p are right."""
    of = _tables(counts, labels, statistic)
    generator = torch.Generator().manual_seed(seed)
    result = answer(counts.clone(), labels.clone(), statistic, n, generator)
    came, null, p = unpacked(result, 3, "three tensors, observed, null and p")
    observed, null = of(labels.tolist()), as_tensor(null)
    expect(came, observed, f"{what}: the observed statistic", rel=1e-9)
    if null is None or null.shape != (n, *observed.shape):
        right = "({})".format(", ".join(map(str, (n, *observed.shape))))
        raise Wrong(f"{what}: expected a null of shape {right}, got {shown(getattr(null, 'shape', null))}.")
    null = null.double()
    _from_documents(null, of, labels.tolist())
    at_least, below = (null >= observed).sum(0).double(), 1 + (null <= observed).sum(0).double()
    mistakes = {
        "The observed labels are one of the relabellings: (1 + ...) / (1 + n), so p is never 0.": at_least / n,
        "A relabelling that gives the same value counts too: >=, not >.": (1 + (null > observed).sum(0)) / (1 + n),
        "That is the share below: count how many of the null are at least as large.": below / (1 + n),
    }
    expect(p, (1 + at_least) / (1 + n), f"{what}: p of the null that you returned", mistakes)
    return null


def _from_documents(null, of, labels: list[int]) -> None:
    """Every value of the null must be one that a relabelling of whole documents gives, and each as often as others."""
    rows, D = null.reshape(len(null), -1), max(labels) + 1

    def among(labelings):
        values = torch.stack([of(list(one)).reshape(-1) for one in labelings])
        return (rows[:, None] - values).abs() < 1e-6  # (n, labelings, values of a table)

    ways = sorted(set(itertools.permutations(labels)))
    found = among(ways)
    if found.all(2).any(1).all():
        if len(labels) != D and len(rows) >= 10 and len(rows.unique(dim=0)) < 4:
            raise Wrong("the null hardly varies: shuffle the labels anew for each permutation.")
        times = found.all(2).sum(0)
        if len(rows) >= 40 * len(ways) and not (len(rows) / 50 < times.min() and times.max() < len(rows) / 4):
            raise Wrong(
                f"of the {len(ways)} ways to hand out the labels, {int((times > 0).sum())} come, between "
                f"{int(times.min())} and {int(times.max())} times in {len(rows)}: each order must be as likely as any "
                "other, as torch.randperm makes it."
            )
        return
    if found.any(1).all():
        raise Wrong("each layer got labels of its own: a document has one label, the same in all that it counts.")
    if among(itertools.product(range(D), repeat=len(labels))).all(2).any(1).all():
        raise Wrong(
            "some of the null come from other numbers of documents per domain: labels were drawn with replacement. "
            "Shuffle them, so that each domain keeps its documents' number."
        )
    raise Wrong(
        f"the null has values that no relabelling of the {len(labels)} documents gives. Tokens of one document are "
        "not independent: shuffle the labels of documents, and keep a document's tokens together (no null over tokens)."
    )


# ---- expected_by_token -------------------------------------------------------------------------------------------


def _by_words(tokens, chosen, document, E, kind=None, ranks=None, others=False):
    kind = tokens if kind is None else kind(tokens, document)
    one_hot = F.one_hot(chosen[:, :ranks], E).double().sum(1)
    same = (kind[:, None] == kind).double() * (~others | (document[:, None] != document))
    average = same @ one_hot / same.sum(1, keepdim=True)
    return torch.zeros(int(document.max()) + 1, E).double().index_add_(0, document, average)


@exercise("2.4.3", "ex-expected-by-token")
def expected_by_token(answer, random):
    tokens, document = torch.tensor([7, 2, 7, 5, 2, 7, 2, 5]), torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    chosen = torch.tensor([[0, 2], [1, 3], [0, 1], [3, 0], [1, 0], [2, 0], [3, 2], [0, 1]])
    cases = [
        case("2 documents with 3 kinds of token and 4 experts", tokens, chosen, document, 4),
        case("one token of one document, 4 experts", torch.tensor([3]), torch.tensor([[1]]), torch.tensor([0]), 4),
    ]
    generator = _seeded(random)
    for N, n, kinds, E, k in ((1, 6, 2, 3, 1), (3, 12, 4, 3, 3), (2, 9, 50_000, 5, 2), (7, 200, 20, 16, 4)):
        tokens = torch.randint(0, kinds, (n,), generator=generator)
        # As the lab takes it from the place of each real token, so it is not contiguous.
        places = torch.stack([torch.arange(n) % N, torch.arange(n)], 1)
        document = places.sort(0).values[:, 0]
        what = f"{n} tokens of up to {kinds:,} kinds in {N} documents, {E} experts, k = {k}"
        cases.append(case(what, tokens, _draw(generator, E, k, n), document, E))
    order = torch.randperm(n, generator=generator)
    mixed = tokens[order], cases[-1].args[1], document[order], E
    cases.append(case("the tokens of several documents in mixed order", *mixed))
    load = partial(_by_words, kind=lambda tokens, document: tokens * 0)
    own = partial(_by_words, kind=lambda tokens, document: torch.arange(len(tokens)))
    apart = partial(_by_words, kind=lambda tokens, document: tokens + document * (tokens.max() + 1))
    mistakes = {
        "Rows must sum to k times the tokens: each token has k experts.": lambda *args: (
            _by_words(*args) / args[1].shape[1]
        ),
        "That is the load of all tokens, whatever they are: average over tokens of the same kind.": load,
        "Those are the document's own counts: average a kind of token over all documents.": own,
        "Those are each document's own counts of a kind of token: average over all documents.": apart,
        "The document's own tokens belong to the average too.": partial(_by_words, others=True),
        "All k experts of a token count, not the first alone.": partial(_by_words, ranks=1),
    }
    agree(answer, cases, mistakes)
    return "what each document would do if its words alone decided."


# ---- repetition --------------------------------------------------------------------------------------------------


def _agreeing(rows) -> float:
    """The share of neighbours that agree, over several rows."""
    pairs = [pair for row in rows for pair in itertools.pairwise(row.tolist())]
    return sum(a == b for a, b in pairs) / len(pairs)


def _agreeing_across(rows) -> float:
    return _agreeing([_real(rows)])


def _agreeing_on(rows) -> float:
    return _agreeing([rows.flatten()])


def _agreeing_of_all(rows) -> float:
    return ((rows[:, 1:] == rows[:, :-1]) & (rows[:, 1:] >= 0)).double().mean()


def _real(row):
    return row[row >= 0]


def _mean_share(rows) -> float:
    shares = [_agreeing([_real(row)]) for row in rows if len(_real(row)) > 1]
    return sum(shares) / len(shares)


def _chance_with_padding(rows) -> float:
    return (torch.unique(rows, return_counts=True)[1] / rows.numel()).square().sum()


@exercise("2.4.3", "ex-repetition")
def repetition(answer, random):
    first = torch.tensor([[0, 0, 3, 3, 3, 1], [3, 3, 3, -1, -1, -1], [0, 0, 0, 2, -1, -1]])
    cases = [
        case("3 documents, where experts 0 and 3 have most of the load", first),
        case("one document of two tokens", torch.tensor([[1, 1]])),
        case("a document of one token beside another", torch.tensor([[2, -1, -1], [0, 1, 0]])),
    ]
    generator = _seeded(random)
    for N, T, E in ((1, 9, 3), (4, 6, 2), (30, 40, 64)):
        first = _routed(generator, N, T, E, 2)[..., 0]
        cases.append(case(f"{N} documents of up to {T} tokens, {E} experts", first))
    neighbours = {
        "Padding was counted: -1 next to -1 is no repetition.": _agreeing,
        "Pairs with padding were counted as pairs that differ: leave them out.": _agreeing_of_all,
        "The last token of a document and the first of the next are no neighbours.": _agreeing_across,
        "The last token of a row and the first of the next are no neighbours.": _agreeing_on,
        "All pairs count alike: a mean of the documents' shares gives those of short ones more weight.": _mean_share,
    }
    uniform = lambda first: 1 / (int(first.max()) + 1)  # noqa: E731
    chance = {
        "1 / E is chance only where all experts have the same load: it is the sum of p_e squared.": uniform,
        "The sum of p_e is 1: square each.": lambda first: 1.0,
        "Padding is no expert: leave -1 out of the load.": _chance_with_padding,
    }
    parts = [("share of neighbours with the same first expert", neighbours), ("share by chance", chance)]
    for one in cases:
        both = unpacked(one.of(answer), 2, "two numbers, the share that agrees and the share by chance")
        for came, right, (what, mistakes) in zip(both, one.of(answer.own), parts, strict=True):
            wrong = {why: partial(one.of, mistake) for why, mistake in mistakes.items()}
            expect(came, right, f"{what}, of {one.what}", wrong)
    return "neighbours within a document, against the load that there is."
