"""Checks of lab 2.4.3: each exercise on cases worked out here by definition, and the usual mistakes by name."""

import itertools
import math

import torch
import torch.nn.functional as F
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM

from shared import experts
from shared.checks import Wrong, exercise, expect
from shared.kits import routing

PARTS = ("embedding", "attention", "router", "shared", "routed", "other")
LAYER = "model.layers.1."
# A sparse layer as transformers names it, and a dense one. Every size differs, so no two mistakes give the same.
SHAPES = {
    "model.embed_tokens.weight": (50, 4),
    "lm_head.weight": (50, 4),
    "model.layers.0.mlp.gate_proj.weight": (11, 4),
    LAYER + "self_attn.q_proj.weight": (4, 4),
    LAYER + "self_attn.o_proj.weight": (4, 5),
    LAYER + "mlp.gate.weight": (6, 4),
    LAYER + "mlp.experts.gate_up_proj": (6, 14, 4),
    LAYER + "mlp.experts.down_proj": (6, 4, 7),
    LAYER + "mlp.shared_experts.gate_proj.weight": (3, 4),
    LAYER + "input_layernorm.weight": (4,),
    "model.layers.2.feed_forward.router.weight": (6, 9),
}


@exercise("2.4.3", "ex-parameter-parts")
def parameter_parts(answer, random):
    shapes = {name: torch.Size(shape) for name, shape in SHAPES.items()}
    came = answer(shapes, 2)
    if not isinstance(came, dict) or set(came) != set(PARTS):
        raise Wrong(f"expected a dict with the parts {', '.join(PARTS)}, got {came!r}.")
    one, expected = 14 * 4 + 4 * 7, {"embedding": 400, "attention": 36, "router": 24 + 54, "shared": 12, "other": 48}
    mistakes = {
        "routed": {
            "Every expert is in memory and top_k of them work for a token: total and active differ.": (
                6 * one,
                6 * one,
            ),
            "top_k experts work for a token, not one.": (6 * one, one),
            "The shared expert is always on: .shared_experts. is a part of its own, not routed.": (
                6 * one + 12,
                2 * one + 4 * 2,
            ),
            "gate_up_proj is no router: look for .gate.weight and .router.weight.": (6 * 28, 2 * 28),
            "All experts are in memory: the total counts each of them.": (2 * one, 2 * one),
        },
        "router": {"A router may be called .router.weight too.": (24, 24)},
        "embedding": {"lm_head belongs to the embeddings too.": (200, 200)},
        "other": {"What no other part has is other: dense layers and norms.": (0, 0)},
    }
    right = {"routed": (6 * one, 2 * one), **{part: (size, size) for part, size in expected.items()}}
    for part, pair in right.items():
        expect(came[part], pair, f"{part}, total and active, of 6 experts with top_k = 2", mistakes.get(part))
    return "all experts are in memory, top_k of them work, everything else always works."


def _small_models():
    """Two sparse layers each; the second model also has a dense one, a shared expert and a bias in its selection."""
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 3, "vocab_size": 40}
    size |= {"num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2}
    experts = {"n_routed_experts": 6, "n_shared_experts": 1, "moe_intermediate_size": 8, "first_k_dense_replace": 1}
    choice = {"n_group": 1, "topk_group": 1}
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {
            "Mixtral": MixtralForCausalLM(MixtralConfig(**size, num_local_experts=5)),
            "DeepSeek-V3": DeepseekV3ForCausalLM(DeepseekV3Config(**size, **experts, **choice, **heads)),
        }
        for model in models.values():
            for router in routing.routers(model.eval()).values():
                torch.nn.init.normal_(router.weight)
                if hasattr(router, "e_score_correction_bias"):
                    router.e_score_correction_bias.normal_()
    return models


def _topk_of_logits(model, batch) -> dict:
    """What one gets from the routers' logits, which is the choice only where nothing comes after them."""
    found, hooks = {}, []
    for layer, router in routing.routers(model).items():

        def see(module, args, layer=layer):
            logits = F.linear(args[0].reshape(-1, args[0].shape[-1]).float(), module.weight.float())
            found[layer] = logits.topk(2).indices.reshape(*batch["input_ids"].shape, 2)

        hooks.append(router.register_forward_pre_hook(see))
    model(**batch)
    for hook in hooks:
        hook.remove()
    return found


@exercise("2.4.3", "ex-record")
@torch.no_grad()
def record(answer, random):
    ids = torch.tensor([[9, 5, 33, 8, 17, 2], [4, 30, 12, 0, 0, 0]])
    batch = {"input_ids": ids, "attention_mask": (ids > 0).long()}
    for kind, model in _small_models().items():
        with experts.capture(model) as trace:
            model(**batch)
        came = answer(model, ids, batch["attention_mask"])
        _recorded(came, trace.indices, kind, _topk_of_logits(model, batch))
        if any(module._forward_hooks or module._forward_pre_hooks for module in model.modules()):
            raise Wrong("a hook is still on the model: remove each one when the forward is done, also after an error.")
    return "what is dispatched, where it is dispatched, without padding, and no hook stays."


def _recorded(came, right: dict, kind: str, topk: dict) -> None:
    if not isinstance(came, dict):
        raise Wrong(f"expected a dict, layer -> (B, T, k), got {came!r}.")
    if set(came) != set(right):
        raise Wrong(
            f"a small {kind} with experts in layers {sorted(right)}: got layers {sorted(came)}. The experts of a layer "
            "are one fused module: hooks on gate_proj or on single experts see a dense layer, a shared expert or "
            "nothing. Hook the modules of experts.experts_modules(model)."
        )
    for layer, chosen in right.items():
        if getattr(came[layer], "shape", None) != chosen.shape:
            raise Wrong(f"layer {layer}: expected a tensor {tuple(chosen.shape)}, got {came[layer]!r}.")
        padding = chosen[..., 0] < 0
        if (came[layer][padding] >= 0).any():
            raise Wrong(f"layer {layer}: padding is dispatched too, and must not count: write -1 where the mask is 0.")
        same = lambda a, b, real=~padding: torch.equal(a[real].sort().values, b[real].sort().values)  # noqa: E731
        if not same(came[layer], chosen):
            why = " Those are the top k of the router's logits: a selection bias comes after them. Record the indices."
            raise Wrong(
                f"layer {layer} of a small {kind}: other experts than those dispatched."
                + (why if same(came[layer], topk[layer]) else "")
            )


@exercise("2.4.3", "ex-document-counts")
def document_counts(answer, random):
    first = torch.tensor([[[0, 2], [2, 1], [0, 1]], [[3, 0], [3, 1], [-1, -1]]])
    second = torch.tensor([[[1, 0], [1, 3], [3, 1]], [[2, 1], [0, 2], [-1, -1]]])
    indices, E = {1: first, 3: second}, 5

    def by(keep=lambda chosen: chosen >= 0, ranks=2):
        one_hot = lambda c: F.one_hot(c % E, E) * keep(c).unsqueeze(-1)  # noqa: E731
        return torch.stack([one_hot(c[..., :ranks]).sum((1, 2)) for c in indices.values()], 1)

    came, right = answer(indices, E), by()
    if isinstance(came, torch.Tensor) and came.shape == (2, E):
        raise Wrong(
            f"expected the shape {tuple(right.shape)}, got {tuple(came.shape)}. Keep the layers apart: expert 3 of one "
            "layer has nothing to do with expert 3 of another, so a sum over layers means nothing."
        )
    mistakes = {
        "Padding was counted: index -1 is no expert, and must not end up in the last one.": lambda: by(lambda c: c < E),
        "All k experts of a token count, not the first alone.": lambda: by(ranks=1),
    }
    came = came.double() if isinstance(came, torch.Tensor) else came
    expect(came, right.double(), "2 documents, 2 layers, 5 experts", _double(mistakes))
    return "per document, per layer, per expert, without padding."


def _double(mistakes: dict) -> dict:
    return {why: lambda wrong=wrong: wrong().double() for why, wrong in mistakes.items()}


@exercise("2.4.3", "ex-mutual-information")
def mutual_information(answer, random):
    table = torch.tensor([[[8.0, 0, 4, 2], [1, 6, 3, 5]], [[2.0, 4, 6, 8], [4, 8, 12, 16]]], dtype=torch.float64)

    def by(table=table, base=math.e, experts=None, axes=(-2, -1)):
        p = table / table.sum(axes, keepdim=True)
        apart = p.sum(-1, keepdim=True) * (p.sum(-2, keepdim=True) if experts is None else 1 / experts)
        return (p * torch.where(p > 0, (p / apart).log(), 0)).sum((-2, -1)) / math.log(base)

    mistakes = {
        "Those are bits: nats have the natural logarithm.": lambda: by(base=2),
        "The baseline is the load that each expert has over all domains, not 1 / E.": lambda: by(experts=4),
        "Each table is normalised by itself: sum over its last two dimensions only.": lambda: by(axes=(0, 1, 2)),
    }
    came = answer(table)
    if isinstance(came, torch.Tensor) and came.isnan().any():
        raise Wrong(
            "got nan: an empty cell adds nothing. 0 log 0 is 0 (torch.xlogy knows), and 0 / 0 must not be made."
        )
    expect(came, by(), "a table of 2 domains and 4 experts, and one whose domains agree", mistakes, 1e-9)
    return "0 where domains use experts alike; the load itself, even or not, is no information."


@exercise("2.4.3", "ex-permutation-test")
def permutation_test(answer, random):
    counts = torch.tensor([[[9, 1, 2], [3, 3, 4]], [[7, 2, 1], [5, 1, 4]], [[2, 6, 3], [1, 8, 2]],
                           [[1, 5, 7], [0, 4, 7]], [[3, 3, 8], [2, 9, 1]]], dtype=torch.float64)  # fmt: skip
    labels, n = torch.tensor([0, 0, 0, 1, 1]), 60

    def statistic(tables):  # the squared distance of the domains' shares: exact arithmetic is not needed
        shares = tables / tables.sum(-1, keepdim=True)
        return (shares[..., 0, :] - shares[..., 1, :]).square().sum(-1)

    def of(labels):
        return statistic(torch.einsum("nd,nle->lde", F.one_hot(torch.tensor(labels), 2).double(), counts))

    result = answer(counts, labels, statistic, n, torch.Generator().manual_seed(1))
    if not isinstance(result, (tuple, list)) or len(result) != 3:
        raise Wrong(f"expected three tensors, observed, null and p, got {result!r}.")
    observed, null, p = result
    expect(observed, of(labels.tolist()), "the observed statistic of 2 layers", rel=1e-9)
    if getattr(null, "shape", None) != (n, 2):
        raise Wrong(f"expected a null of shape ({n}, 2), got {getattr(null, 'shape', null)}.")
    _from_documents(null, of)
    at_least = (null >= observed - 1e-9).sum(0).double()
    mistakes = {
        "The observed labels are one of the relabellings: (1 + ...) / (1 + n), so p is never 0.": lambda: at_least / n,
        "A relabelling that gives the same value counts too: >=, not >.": lambda: (
            (1 + (null > observed + 1e-9).sum(0)) / (1 + n)
        ),
        "That is the share below: count how many of the null are at least as large.": lambda: (
            (1 + (null <= observed + 1e-9).sum(0)) / (1 + n)
        ),
    }
    p = p.double() if isinstance(p, torch.Tensor) else p
    expect(p, (1 + at_least) / (1 + n), "p of the null that you returned", mistakes)
    return "documents keep their tokens together and trade labels; p counts the observed one."


def _from_documents(null, of) -> None:
    """Every value of the null must be one that a relabelling of whole documents gives."""
    possible = torch.stack([of(list(labels)) for labels in set(itertools.permutations((0, 0, 0, 1, 1)))])
    among = lambda values: ((null[:, None] - values).abs() < 1e-9).any(1)  # noqa: E731
    if among(possible).all():
        if len(null.unique(dim=0)) < 4:
            raise Wrong("the null hardly varies: shuffle the labels anew for each permutation.")
        return
    drawn = torch.stack([of(list(labels)) for labels in itertools.product((0, 1), repeat=5) if 0 < sum(labels) < 5])
    if (among(drawn) | null.isnan()).all():  # nan: a domain without a document
        raise Wrong(
            "some of the null come from other numbers of documents per domain: labels were drawn with replacement. "
            "Shuffle them, so that each domain keeps its documents' number."
        )
    raise Wrong(
        "the null has values that no relabelling of the 5 documents gives. Tokens of one document are not independent: "
        "shuffle the labels of documents, and keep a document's tokens together (no null over tokens)."
    )


@exercise("2.4.3", "ex-expected-by-token")
def expected_by_token(answer, random):
    tokens, document = torch.tensor([7, 2, 7, 5, 2, 7, 2]), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    chosen, E = torch.tensor([[0, 2], [1, 3], [0, 1], [3, 0], [1, 0], [2, 0], [3, 2]]), 4

    def by(kind=tokens, k=2):
        one_hot = F.one_hot(chosen[:, :k], E).double().sum(1)
        same = (kind[:, None] == kind).double()
        return torch.zeros(2, E).double().index_add_(0, document, same @ one_hot / same.sum(1, keepdim=True))

    mistakes = {
        "Rows must sum to k times the tokens: each token has k experts.": lambda: by() / 2,
        "That is the load of all tokens, whatever they are: average over tokens of the same kind.": lambda: by(
            torch.zeros_like(tokens)
        ),
        "Those are the document's own counts: average a kind of token over all documents.": lambda: by(
            torch.arange(len(tokens))
        ),
        "All k experts of a token count, not the first alone.": lambda: by(k=1),
    }
    came = answer(tokens, chosen, document, E)
    came = came.double() if isinstance(came, torch.Tensor) else came
    expect(came, by(), "2 documents with 3 kinds of token and 4 experts", mistakes)
    return "what each document would do if its words alone decided."


@exercise("2.4.3", "ex-repetition")
def repetition(answer, random):
    first = torch.tensor([[0, 0, 3, 3, 3, 1], [3, 3, 3, -1, -1, -1], [0, 0, 0, 2, -1, -1]])
    real = first[first >= 0].tolist()
    load = [real.count(e) / len(real) for e in range(4)]
    repeated, pairs = (1 + 2) + 2 + 2, 5 + 2 + 3
    result = answer(first)
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong(f"expected two numbers, the share that agrees and the share by chance, got {result!r}.")
    came, chance = result
    flat = first.flatten().tolist()
    across = sum(a == b for a, b in itertools.pairwise(real)) / (len(real) - 1)
    mistakes = {
        "Padding was counted: -1 next to -1 is no repetition.": (repeated + 2 + 1) / 15,
        "Pairs with padding were counted as pairs that differ: leave them out.": repeated / 15,
        "The last token of a document and the first of the next are no neighbours.": across,
        "The last token of a row and the first of the next are no neighbours.": sum(
            a == b for a, b in itertools.pairwise(flat)
        )
        / (len(flat) - 1),
    }
    expect(came, repeated / pairs, "neighbours with the same first expert, of 3 documents", mistakes)
    expect(
        chance,
        sum(p * p for p in load),
        "the share by chance, where experts 0 and 3 have most of the load",
        {
            "1 / E is chance only where all experts have the same load: it is the sum of p_e squared.": 1 / 4,
            "The sum of p_e is 1: square each.": 1.0,
            "Padding is no expert: leave -1 out of the load.": sum(
                (flat.count(e) / len(flat)) ** 2 for e in (-1, 0, 1, 2, 3)
            ),
        },
        rel=1e-6,
    )
    return "neighbours within a document, against the load that there is."
