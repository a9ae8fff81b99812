"""Answers of lab 2.4.3: one block per exercise cell, which takes the place of its stub."""

from collections.abc import Callable

import torch
from torch import Tensor

from shared import experts


# %% ex-parameter-parts
def parameter_parts(
    shapes: dict[str, torch.Size], top_k: int
) -> dict[str, tuple[int, int]]:
    """Count a model's parameters by part: all of them, and those that work for one token.

    shapes: name -> shape of every parameter, as transformers names them. top_k: routed
        experts per token.

    Returns: part -> (total, active), of a part without parameters (0, 0). The parts, and
        what their names contain: "embedding" (embed_tokens, lm_head), "attention"
        (self_attn.), "router" (.gate.weight, .router.weight), "shared"
        (.shared_experts.), "routed" (.experts.), and "other".
    """
    names = {
        "embedding": ("embed_tokens", "lm_head"),
        "attention": ("self_attn.",),
        "router": (".gate.weight", ".router.weight"),
        "shared": (".shared_experts.",),
        "routed": (".experts.",),
        "other": ("",),
    }
    parts = dict.fromkeys(names, (0, 0))
    for name, shape in shapes.items():
        part = next(p for p, marks in names.items() if any(m in name for m in marks))
        size = shape.numel()
        works = size // shape[0] * top_k if part == "routed" else size
        parts[part] = parts[part][0] + size, parts[part][1] + works
    return parts


# %% ex-record
def record(model, input_ids: Tensor, attention_mask: Tensor) -> dict[int, Tensor]:
    """Which experts a forward dispatches to, seen where it happens.

    input_ids, attention_mask: (B, T), the mask 0 at padding.

    Returns: layer -> (B, T, k) int64, in any order along k; -1 at padding. No hook
        stays, also where the forward raises an error.
    """
    found, hooks = {}, []
    for layer, block in experts.experts_modules(model).items():

        def see(block, args, layer=layer):
            _, chosen, _ = args  # hidden (B * T, d_model), indices and weights (B * T, k)
            chosen = chosen.reshape(*input_ids.shape, -1)
            found[layer] = chosen.masked_fill(attention_mask[..., None] == 0, -1)

        hooks.append(block.register_forward_pre_hook(see))
    try:
        model(input_ids=input_ids, attention_mask=attention_mask)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# %% ex-document-counts
def document_counts(indices: dict[int, Tensor], experts: int) -> Tensor:
    """How often each document chose each expert.

    indices: layer -> (N, T, k) int64, -1 at padding. experts: E.

    Returns: (N, L, E) int64, the layers in the order of `indices`.
    """
    layers = []
    for chosen in indices.values():
        chosen = chosen.flatten(1)
        bins = chosen.masked_fill(chosen < 0, experts)  # padding gets a bin of its own
        empty = chosen.new_zeros(len(chosen), experts + 1)
        layers.append(empty.scatter_add(1, bins, torch.ones_like(bins))[:, :experts])
    return torch.stack(layers, dim=1)


# %% ex-mutual-information
def mutual_information(table: Tensor) -> Tensor:
    """How much domain and expert say about each other, in nats.

    table: (..., D, E) counts, not normalised. Some may be 0.

    Returns: (...), 0 where each domain uses the experts in the same shares.
    """
    p = table / table.sum((-2, -1), keepdim=True)
    apart = p.sum(-2, keepdim=True) * p.sum(-1, keepdim=True)
    return (torch.xlogy(p, p) - torch.xlogy(p, apart)).sum((-2, -1))


# %% ex-permutation-test
def permutation_test(
    counts: Tensor,
    labels: Tensor,
    statistic: Callable[[Tensor], Tensor],
    permutations: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compare a statistic with what it is when documents get each other's labels.

    counts: (N, ..., E) float64, one row per document. labels: (N,) int64, 0 to D - 1.
    statistic: tables (..., D, E) -> (...), the larger the more domains and experts agree.
    generator: draws the documents' order anew for each permutation, all as likely.

    Returns: the observed values (...), the null (permutations, ...), and p (...), which
        is (1 + how many of the null are at least as large) / (1 + permutations).
    """
    domains = int(labels.max()) + 1

    def measure(labels: Tensor) -> Tensor:
        member = torch.nn.functional.one_hot(labels, domains).to(counts.dtype)
        return statistic(torch.einsum("nd,n...e->...de", member, counts))

    observed = measure(labels)
    null = []
    for _ in range(permutations):
        order = torch.randperm(len(labels), generator=generator)
        null.append(measure(labels[order]))
    null = torch.stack(null)
    at_least = (null >= observed).sum(0).double()
    return observed, null, (1 + at_least) / (1 + permutations)


# %% ex-expected-by-token
def expected_by_token(
    tokens: Tensor, chosen: Tensor, document: Tensor, experts: int
) -> Tensor:
    """The counts that each document would have if experts depended on the token alone.

    tokens, document: (n,) int64, every real token and the number of its document.
    chosen: (n, k) int64, its experts in one layer. experts: E.

    Returns: (N, E) float64: each token counts k times as its kind chooses on average over
        all documents, the document's own included. A row sums to k times its tokens.
    """
    one_hot = torch.zeros(len(chosen), experts, dtype=torch.float64)
    one_hot.scatter_(1, chosen, 1)
    kinds = int(tokens.max()) + 1
    used = one_hot.new_zeros(kinds, experts).index_add_(0, tokens, one_hot)
    seen = torch.bincount(tokens, minlength=kinds).clamp(min=1)
    average = used / seen[:, None]
    documents = int(document.max()) + 1
    return one_hot.new_zeros(documents, experts).index_add_(0, document, average[tokens])


# %% ex-repetition
def repetition(first: Tensor) -> tuple[float, float]:
    """How often neighbouring tokens have the same first expert, and how often by chance.

    first: (N, T) int64, the first expert of each token; -1 at padding, which is at the end.

    Returns: of all neighbours within a document the share that agree, and the share for
        experts drawn independently with the load that they have, the sum of p_e squared.
    """
    here, after = first[:, :-1], first[:, 1:]
    both = (here >= 0) & (after >= 0)
    load = torch.bincount(first[first >= 0]).double()
    load /= load.sum()
    return (here == after)[both].double().mean().item(), load.square().sum().item()
