"""Every check accepts its answer, refuses known-wrong ones and names their mistake, and never crashes."""

import math
import statistics
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shared import checks, data, experts, notebooks, routing
from shared.checks import lab_2_4_1, lab_2_4_2, lab_2_4_3, lab_2_4_4, lab_2_4_5, lab_2_4_6

LN2 = math.log(2)
LABS = {
    "2.4.1": lab_2_4_1,
    "2.4.2": lab_2_4_2,
    "2.4.3": lab_2_4_3,
    "2.4.4": lab_2_4_4,
    "2.4.5": lab_2_4_5,
    "2.4.6": lab_2_4_6,
}


def checks_of(module):
    return {f.cell_id: f for f in vars(module).values() if hasattr(f, "cell_id")}


ALL = [(lab, cell_id, check) for lab, module in LABS.items() for cell_id, check in checks_of(module).items()]
EACH = pytest.mark.parametrize(("lab", "cell_id", "check"), ALL, ids=[f"{lab}-{cell_id}" for lab, cell_id, _ in ALL])


def own(lab, check):
    return getattr(notebooks.solution(lab), check.__name__)


def test_every_exercise_has_a_check_and_every_check_an_exercise():
    for lab in notebooks.labs():
        assert set(checks_of(LABS[lab])) == set(notebooks.answers(lab))


@EACH
def test_the_answer_passes_and_is_handed_back(lab, cell_id, check, capsys):
    answer = own(lab, check)
    start = time.process_time()  # of this process: other work on the machine does not count
    assert check(answer) is answer
    assert time.process_time() - start < 1
    assert checks.PASSED in capsys.readouterr().out


@EACH
def test_an_open_exercise_is_not_attempted_yet_and_the_course_goes_on(lab, cell_id, check, capsys):
    def stub(*args, **kwargs):
        raise NotImplementedError

    assert check(stub) is own(lab, check)
    said = capsys.readouterr().out
    assert "not attempted yet" in said and checks.PASSED not in said and checks.FAILED not in said


@EACH
@pytest.mark.parametrize("result", [None, 0, -1.0, "text", [], (1, 2, 3), float("nan"), {}], ids=repr)
def test_nonsense_is_refused_without_a_traceback(lab, cell_id, check, result, capsys):
    assert check(lambda *args, **kwargs: result) is own(lab, check)
    said = capsys.readouterr().out
    assert checks.FAILED in said and "Traceback" not in said


@EACH
def test_an_answer_that_raises_is_told_what_it_raised(lab, cell_id, check, capsys):
    def broken(*args, **kwargs):
        raise KeyError("layers")

    assert check(broken) is own(lab, check)
    assert "KeyError" in capsys.readouterr().out


# ---- lab 2.4.3 ----------------------------------------------------------------------------------------------------


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


def recorded(model, input_ids, attention_mask, *, padding=-1, remove=True, where="experts"):
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
            chosen = args[1] if where == "experts" else logits.topk(2).indices
            found[layer] = chosen.reshape(*input_ids.shape, -1).masked_fill(attention_mask[..., None] == 0, padding)

        hooks.append(module.register_forward_pre_hook(see))
    model(input_ids=input_ids, attention_mask=attention_mask)
    for hook in hooks if remove else ():
        hook.remove()
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
    def measure(labels, counts=counts):
        return statistic(torch.einsum("nd,n...e->...de", F.one_hot(labels, 2).double(), counts))

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


# ---- known-wrong answers: (check, wrong answer, what the message must name) ---------------------------------------


def kv(config, tokens, batch=1, bytes_per_value=2, *, factor=2, heads=None, layers=True):
    cached = heads or getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = config.hidden_size // config.num_attention_heads
    return factor * (config.num_hidden_layers if layers else 1) * batch * cached * tokens * size * bytes_per_value


def kv_all_heads(config, tokens, batch=1, bytes_per_value=2):
    return kv(config, tokens, batch, bytes_per_value, heads=config.num_attention_heads)


def state(config, batch=1, bytes_per_value=2, *, window_bytes=None, state_bytes=4, channels=None, window=True):
    width = channels or config.intermediate_size
    kept = width * config.conv_kernel * (window_bytes or bytes_per_value) if window else 0
    return config.num_hidden_layers * batch * (kept + width * config.state_size * state_bytes)


def timer(warm=True, before=True, after=True, together=False, count_warmup=False):
    def measure(work, synchronize, warmup=3, repeats=5):
        seconds = []
        for _ in range(warmup if warm and not count_warmup else 0):
            work()
        for _ in range(repeats + warmup * count_warmup):
            if before:
                synchronize()
            start = time.perf_counter()
            work()
            if after:
                synchronize()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) if together else seconds

    return measure


def fit(log_x=np.log, log_y=np.log, dof=2, root=True):
    def growth_exponent(tokens, values):
        x, y = log_x(np.asarray(tokens, float)), log_y(np.asarray(values, float))
        slope, intercept = np.polyfit(x, y, 1)
        variance = ((y - slope * x - intercept) ** 2).sum() / (len(x) - dof) / ((x - x.mean()) ** 2).sum()
        return float(slope), float(math.sqrt(variance) if root else variance)

    return growth_exponent


def states(decay, inputs, h=None, *, early=False, ignore=False, in_place=False):
    h = torch.zeros_like(inputs[0]) if h is None or ignore else h
    found = inputs if in_place else torch.empty_like(inputs)
    for t in range(len(inputs)):
        after = decay[t] * h + inputs[t]
        found[t] = h if early else after
        h = after
    return found


def discrete(delta, A, B, *, sign=1, exact=False, euler=False, timeless=False):
    step = delta[:, :, None]
    A_bar = 1 + step * A if euler else torch.exp(sign * step * A)
    B_bar = (torch.exp(step * A) - 1) / A * B[:, None] if exact else step * B[:, None]
    return A_bar, B_bar / step if timeless else B_bar


def selected(u, mixer, *, activation=F.softplus, swapped=False, bias=True):
    N, rank = mixer.A_log.shape[1], mixer.dt_proj.in_features
    projected = mixer.x_proj(u)
    delta = mixer.dt_proj(projected[:, :rank]) - (0 if bias else mixer.dt_proj.bias)
    B, C = projected[:, rank : rank + N], projected[:, rank + N :]
    return activation(delta), *((C, B) if swapped else (B, C))


def chunks(decay, inputs, chunk=64, h=None, *, hand=True, from_start=False, decayed=True, keep=None):
    zero = torch.zeros_like(inputs[0])
    start, found = zero if h is None else h, []
    h = start
    for a, x in zip(decay.split(chunk), inputs.split(chunk), strict=True):
        if len(x) < chunk and keep == "whole":
            break
        found.append(states(a, x, start if from_start else h) if decayed else states(a, x, zero) + h)
        h = found[-1][-1] if hand else zero
    return torch.cat(found)


def fused(u, delta, A, B, C, D, h=None, *, skip=True, swapped=False, early=False, ignore=False, sign=1):
    B, C = (C, B) if swapped else (B, C)
    h = torch.zeros_like(A) if h is None or ignore else h
    y = torch.empty_like(u)
    for t in range(len(u)):
        after = torch.exp(sign * delta[t, :, None] * A) * h + (delta[t] * u[t])[:, None] * B[t]
        y[t], h = (h if early else after) @ C[t], after
    return y + (D * u if skip else 0), h


def block(x, mixer, cache=None, *, sign=-1, gated=True, filtered=F.silu, hand=("window", "state"), **faults):
    hidden, gate = mixer.in_proj(x).chunk(2, 1)
    K = mixer.conv1d.weight.shape[2]
    window, h = cache or (torch.zeros_like(hidden[:1]).repeat(K - 1, 1), None)
    window = window if "window" in hand else torch.zeros_like(window)
    seen = torch.cat([window, hidden])
    u = filtered(F.conv1d(seen.T, mixer.conv1d.weight, mixer.conv1d.bias, groups=seen.shape[1]).T)
    scan = {k: v for k, v in faults.items() if k in ("skip", "early")}
    delta, B, C = selected(u, mixer, **{k: v for k, v in faults.items() if k not in scan})
    A = sign * torch.exp(mixer.A_log)
    y, h = fused(u, delta, A, B, C, mixer.D, h if "state" in hand else None, **scan)
    return mixer.out_proj(y * F.silu(gate) if gated else y), (seen[-(K - 1) :], h)


def unrolled(delta, A, B, C, *, since=1, write=True, swapped=False, transposed=False, masked="before"):
    B, C = (C, B) if swapped else (B, C)
    total = delta.cumsum(0).T
    before = total - (0 if since else delta.T)
    elapsed = total[:, :, None] - before[:, None, :]
    past = torch.ones(elapsed.shape[1:]).tril().bool()
    if masked == "before":
        elapsed = elapsed.masked_fill(~past, math.inf)
    alpha = torch.einsum("dnij,in,jn->dij", torch.exp(elapsed[:, None] * A[:, :, None, None]), C, B)
    alpha = alpha * past if masked == "after" else alpha
    alpha = alpha * delta.T[:, None, :] if write else alpha
    return alpha.transpose(1, 2) if transposed else alpha


def softmax_first(logits, k, *, renormalise=False, late=False, dim=-1, swapped=False):
    weights, experts = (logits if late else logits.softmax(dim)).topk(k)
    weights = weights.softmax(-1) if late else weights
    weights = weights / weights.sum(-1, keepdim=True) if renormalise else weights
    return (weights, experts) if swapped else (experts, weights)


def choice_first(logits, k, *, early=False, twice=False, raw=False):
    values, experts = (logits.softmax(-1) if early or twice else logits).topk(k)
    return experts, values if early or raw else values.softmax(-1)


def biased(logits, k, bias, *, weigh=False, before=False, used=True, unit=True):
    scores = (logits + bias).sigmoid() if before else logits.sigmoid()
    values, experts = (scores if before or not used else scores + bias).topk(k)
    weights = values if weigh else scores.gather(-1, experts)
    return experts, weights / weights.sum(-1, keepdim=True) if unit else weights


def four_numbers(counts, *, less=1, sample=0, over=1, log=math.log, dead=0.05, zero=True):
    load = counts.double() / counts.double().mean()
    share = load / len(load)
    share = share[share > 0] if zero else share
    entropy = -(share * share.log()).sum().item() / log(len(load))
    spread = load.std(correction=sample).item() * (counts.double().mean().item() if over else 1)
    return load.max().item() - less, spread, entropy, int((load < dead).sum())


def balance(router_logits, k, real=None, *, pooled=False, padded=False, counted=("f",), E=None, total=False, over=1):
    layers = [torch.cat(list(router_logits))] if pooled else router_logits
    losses = []
    for logits in layers:
        P = logits.softmax(-1) if real is None or padded else logits.softmax(-1)[real]
        f = F.one_hot(P.topk(k).indices, P.shape[1]).sum(1).to(P.dtype).mean(0) / over
        f, P = (f if "f" in counted else P.mean(0)), (f if "P" in counted else P.mean(0))
        losses.append((E or len(f)) * (f * P).sum())
    return torch.stack(losses).sum() if total else torch.stack(losses).mean()


def fits(experts, E, factor, *, late=False, by_token=False, each=False, rounded=math.ceil, opposite=False):
    T, k = experts.shape
    room, taken = rounded(factor * T * (1 if each else k) / E), [0] * E
    places = [(t, r) for t in range(T) for r in range(k)] if by_token else [(t, r) for r in range(k) for t in range(T)]
    kept = torch.zeros(T, k, dtype=torch.bool)
    for t, r in reversed(places) if late else places:
        kept[t, r] = taken[experts[t, r]] < room
        taken[experts[t, r]] += 1
    return ~kept if opposite else kept


def controlled(bias, counts, u, *, sign=1, strict=torch.sign, whole=True):
    move = u * sign * strict(counts.double().mean() - counts)
    return bias + move if whole else move


def faulty(right, **fault):
    return lambda *args, **kwargs: right(*args, **kwargs, **fault)


def cut(tokens, window, stride, *, first="new", last="back", zero=False):
    """The windows of lab 2.4.5; first: what a window scores; last: what becomes of the rest."""
    found, scored, end = [], 0, min(window, tokens)
    while scored < tokens:
        start = max(0, end - window)
        if last == "short" and found:
            start = max(start, found[-1][0] + stride)
        begin = {"new": scored + 1, "all": start + 1, "stride": end - stride + 1}[first]
        found.append((start, end, begin - 1 if zero and not found else begin))
        if last == "drop" and end + stride > tokens:
            break
        scored, end = end, min(end + stride, tokens)
    return found


def nats(logits, ids, new, *, part=lambda x, new: x[-new:].sum(), shift=1, factor=1.0):
    target = ids[1:] if shift else ids[:-1]
    return factor * part(F.cross_entropy(logits, target, reduction="none"), new).item()


def measures(nll, tokens, texts, *, length=lambda t: len(t.encode()), words=lambda t: len(t.split()), base=LN2):
    total, per_word = math.fsum(nll), sum(map(words, texts))
    return math.exp(total / sum(tokens)), math.exp(total / per_word), total / base / sum(map(length, texts))


def averaged(nll, tokens, texts):
    right = measures(nll, tokens, texts)
    return statistics.mean(math.exp(n / t) for n, t in zip(nll, tokens, strict=True)), *right[1:]


def interval(a, b, size, draws=2000, seed=0, *, paired=True, ends=(0.025, 0.975), ratios=False, base=LN2, sign=1):
    a, b, size = (np.asarray(x, float) for x in (a, b, size))
    rng = np.random.default_rng(seed)
    one = rng.integers(len(size), size=(draws, len(size)))
    two = one if paired else rng.integers(len(size), size=(draws, len(size)))
    if ratios:
        found = (a / size)[one].mean(1) - (b / size)[two].mean(1)
    else:
        found = a[one].sum(1) / size[one].sum(1) - b[two].sum(1) / size[two].sum(1)
    return tuple(float(x) for x in sorted(sign * np.quantile(found / base, ends)))


def clocked(*, before=True, after=True, warm=True, middle=statistics.median, whole=False):
    def first_and_decode(prefill, step, synchronize, new_tokens, warm_steps=8):
        def seconds(work):
            if before:
                synchronize()
            start = time.perf_counter()
            work()
            if after:
                synchronize()
            return time.perf_counter() - start

        first = seconds(prefill)
        steps = [seconds(step) for _ in range(new_tokens - 1)]
        counted = steps[warm_steps:] if warm else steps
        return first, (first + sum(steps)) / new_tokens if whole else middle(counted)

    return first_and_decode


def front(points, *, beats=lambda p, q: p[0] <= q[0] and p[1] <= q[1] and p != q, order=True):
    kept = [name for name, q in points.items() if not any(beats(p, q) for p in points.values())]
    return sorted(kept, key=lambda name: points[name]) if order else kept


def decided(table, memory_bytes, context, *, ties=True, long="decode_long_ms", cache=True, weights=None, loss=False):
    weight = table.weight_bytes if weights is None else table[weights] * 2
    each = table.kv_bytes_per_token * context + table.state_bytes if cache else weight
    quality = table[table.low <= 0].decode_ms if ties else table.bits_per_byte if loss else table.decode_ms
    sequences = (memory_bytes - weight) / each
    return {"quality": quality.idxmin(), "long": table[long].idxmin(), "many": sequences.idxmax()}


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
    (lab_2_4_3.record, faulty(recorded, remove=False), "a hook is still on the model"),
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
    (lab_2_4_5.windows, faulty(cut, first="all"), "scored twice"),
    (lab_2_4_5.windows, faulty(cut, first="stride"), "is scored"),
    (lab_2_4_5.windows, faulty(cut, last="drop"), "fills no whole window"),
    (lab_2_4_5.windows, faulty(cut, last="short"), "Let it reach back"),
    (lab_2_4_5.windows, faulty(cut, zero=True), "token 0 is scored"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x.mean() * new), "mean loss times its new tokens"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x.sum()), "scored by an earlier window"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x[-new:].mean()), "That is the mean"),
    (lab_2_4_5.window_nll, faulty(nats, part=lambda x, new: x[:new].sum()), "stand at its end"),
    (lab_2_4_5.window_nll, faulty(nats, shift=0), "ids[1:], not ids[:-1]"),
    (lab_2_4_5.window_nll, faulty(nats, factor=1 / math.log(2)), "nats are wanted"),
    (lab_2_4_5.window_nll, faulty(nats, factor=-1), "sign is wrong"),
    (lab_2_4_5.yardsticks, averaged, "averaged over documents"),
    (lab_2_4_5.yardsticks, faulty(measures, length=len), "Characters are counted, not bytes"),
    (lab_2_4_5.yardsticks, faulty(measures, base=1), "a bit is log(2) nats"),
    (lab_2_4_5.yardsticks, faulty(measures, words=len), "per character"),
    (lab_2_4_5.paired_interval, faulty(interval, paired=False), "Draw once, for both"),
    (lab_2_4_5.paired_interval, faulty(interval, ends=(0.05, 0.95)), "90 % interval"),
    (lab_2_4_5.paired_interval, faulty(interval, base=1), "nats per byte"),
    (lab_2_4_5.paired_interval, faulty(interval, ratios=True), "mean of ratios"),
    (lab_2_4_5.paired_interval, faulty(interval, sign=-1), "b minus a"),
    (lab_2_4_5.first_and_decode, clocked(before=False, after=False), "before the device had finished"),
    (lab_2_4_5.first_and_decode, clocked(after=False), "before the device had finished"),
    (lab_2_4_5.first_and_decode, clocked(before=False), "before you start the clock"),
    (lab_2_4_5.first_and_decode, clocked(warm=False), "leave `warm` of them out"),
    (lab_2_4_5.first_and_decode, clocked(middle=statistics.mean), "take the median"),
    (lab_2_4_5.first_and_decode, clocked(whole=True), "end-to-end time over tokens"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p[0] >= q[0] and p[1] >= q[1] and p != q), "Less is better"),
    (lab_2_4_5.pareto, faulty(front, beats=lambda p, q: p[0] < q[0] and p[1] < q[1]), "at least as good in both"),
    (lab_2_4_5.pareto, lambda points: [min(points, key=lambda n: points[n][i]) for i in (0, 1)], "best of each axis"),
    (lab_2_4_5.pareto, lambda points: [min(points, key=lambda n: sum(points[n]))], "more than one winner"),
    (lab_2_4_5.pareto, faulty(front, order=False), "order of growing cost"),
    (
        lab_2_4_5.decide,
        lambda table, memory_bytes, context: {"quality": "b", "long": "a", "many": "a"},
        "do not type them in",
    ),
    (lab_2_4_5.decide, faulty(decided, ties=False, loss=True), "another ties with it and is faster"),
    (lab_2_4_5.decide, faulty(decided, ties=False), "not among those that tie"),
    (lab_2_4_5.decide, faulty(decided, long="decode_ms"), "a cache grows"),
    (lab_2_4_5.decide, faulty(decided, weights="active"), "all experts lie in memory"),
    (lab_2_4_5.decide, faulty(decided, cache=False), "weights alone do not decide"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, late=True), "softmax after the wrong step"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, renormalise=True), "keeps the probabilities as they are"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, dim=0), "over the tokens"),
    (lab_2_4_4.softmax_router, faulty(softmax_first, swapped=True), "the experts come first"),
    (lab_2_4_4.topk_router, faulty(choice_first, early=True), "softmax after the wrong step"),
    (lab_2_4_4.topk_router, faulty(choice_first, twice=True), "a second softmax"),
    (lab_2_4_4.topk_router, faulty(choice_first, raw=True), "Those are the logits"),
    (lab_2_4_4.biased_router, faulty(biased, weigh=True), "weights from the biased scores"),
    (lab_2_4_4.biased_router, faulty(biased, before=True), "after the sigmoid"),
    (lab_2_4_4.biased_router, faulty(biased, used=False), "not used in the choice"),
    (lab_2_4_4.biased_router, faulty(biased, unit=False), "divide by their sum"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, less=0), "even load has MaxVio 0"),
    (lab_2_4_4.imbalance, faulty(four_numbers), "Divide by the mean"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, sample=1), "correction=0"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, log=lambda E: 1), "Divide by log E"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, zero=False), "0 log 0 is 0"),
    (lab_2_4_4.imbalance, faulty(four_numbers, over=0, dead=0.3), "below 5 % of the mean"),
    (lab_2_4_4.balancing_loss, faulty(balance, pooled=True), "layers are pooled first"),
    (lab_2_4_4.balancing_loss, faulty(balance, counted=()), "probabilities twice"),
    (lab_2_4_4.balancing_loss, faulty(balance, counted=("f", "P")), "counts twice"),
    (lab_2_4_4.balancing_loss, faulty(balance, padded=True), "Padding is counted"),
    (lab_2_4_4.balancing_loss, faulty(balance, E=1), "E is missing"),
    (lab_2_4_4.balancing_loss, faulty(balance, total=True), "take their mean"),
    (lab_2_4_4.balancing_loss, faulty(balance, over=2), "do not divide by k"),
    (lab_2_4_4.balancing_loss, lambda x, k, real=None: balance(x, k, real).detach(), "has no gradient"),
    (lab_2_4_4.within_capacity, faulty(fits, late=True), "wrong tokens are dropped"),
    (lab_2_4_4.within_capacity, faulty(fits, by_token=True), "before any second choice"),
    (lab_2_4_4.within_capacity, faulty(fits, each=True), "counts all T * k choices"),
    (lab_2_4_4.within_capacity, faulty(fits, rounded=int), "Round the capacity up"),
    (lab_2_4_4.within_capacity, faulty(fits, opposite=True), "True means kept"),
    (lab_2_4_4.bias_step, faulty(controlled, sign=-1), "wrong direction"),
    (lab_2_4_4.bias_step, faulty(controlled, strict=lambda x: x), "only its sign does"),
    (lab_2_4_4.bias_step, faulty(controlled, whole=False), "add it to the bias"),
    (lab_2_4_2.sequential_scan, faulty(states, early=True), "off by one in time"),
    (lab_2_4_2.sequential_scan, faulty(states, ignore=True), "initial state is not used"),
    (lab_2_4_2.sequential_scan, faulty(states, in_place=True), "arguments were changed"),
    (lab_2_4_2.sequential_scan, lambda a, x, h=None: states(a, x, h)[-1], "every step's state is wanted"),
    (lab_2_4_2.discretise, faulty(discrete, sign=-1), "A's sign"),
    (lab_2_4_2.discretise, faulty(discrete, euler=True), "zero-order hold is its exponential"),
    (lab_2_4_2.discretise, faulty(discrete, exact=True), "exact zero-order hold of B"),
    (lab_2_4_2.discretise, faulty(discrete, timeless=True), "takes no time must write nothing"),
    (lab_2_4_2.selection, faulty(selected, activation=lambda x: x), "softplus is missing"),
    (lab_2_4_2.selection, faulty(selected, swapped=True), "B and C are swapped"),
    (lab_2_4_2.selection, faulty(selected, bias=False), "dt_proj's bias is missing"),
    (lab_2_4_2.combine, lambda a, b: (a[0] * b[0], a[0] * b[1] + a[1]), "Left is the earlier step"),
    (lab_2_4_2.combine, lambda a, b: (a[0] * b[0], a[1] + b[1]), "later step decays what the earlier one put in"),
    (lab_2_4_2.combine, lambda a, b: (a[0] + b[0], b[0] * a[1] + b[1]), "Decays multiply"),
    (lab_2_4_2.chunked_scan, faulty(chunks, hand=False), "handed from chunk to chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, decayed=False), "has to decay inside the next chunk"),
    (lab_2_4_2.chunked_scan, faulty(chunks, keep="whole"), "last chunk is cut off"),
    (lab_2_4_2.chunked_scan, lambda a, x, chunk=64, h=None: chunks(a, x, chunk), "starts from the initial state"),
    (lab_2_4_2.fused_scan, faulty(fused, skip=False), "D u, the skip"),
    (lab_2_4_2.fused_scan, faulty(fused, swapped=True), "B and C are swapped"),
    (lab_2_4_2.fused_scan, faulty(fused, early=True), "off by one in time"),
    (lab_2_4_2.fused_scan, faulty(fused, ignore=True), "not handed on"),
    (lab_2_4_2.fused_scan, faulty(fused, sign=-1), "A's sign"),
    (lab_2_4_2.mamba_block, faulty(block, sign=1), "A's sign"),
    (lab_2_4_2.mamba_block, faulty(block, skip=False), "D u, the skip"),
    (lab_2_4_2.mamba_block, faulty(block, gated=False), "gate is missing"),
    (lab_2_4_2.mamba_block, faulty(block, activation=lambda x: x), "softplus is missing"),
    (lab_2_4_2.mamba_block, faulty(block, hand=("window",)), "state is not handed on"),
    (lab_2_4_2.mamba_block, faulty(block, hand=("state",)), "window is not handed on"),
    (lab_2_4_2.mamba_block, faulty(block, hand=()), "window and state have to be handed on"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, since=0), "Off by one in time"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, write=False), "a step writes delta B u"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, swapped=True), "B and C are swapped"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, masked="never"), "future counts for nothing"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, masked="after"), "mask the exponent"),
    (lab_2_4_2.hidden_attention, faulty(unrolled, transposed=True), "matrix is transposed"),
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k) // 2, "Keys and values are both cached"),
    (lab_2_4_1.kv_cache_bytes, lambda *a, **k: kv(*a, **k, layers=False), "Every layer keeps a cache"),
    (lab_2_4_1.kv_cache_bytes, kv_all_heads, "num_key_value_heads, not num_attention_heads"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.kv_cache_bytes, lambda c, t, batch=1, bytes_per_value=2: kv(c, t, batch), "not always 2"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, state_bytes=2), "float32"),
    (lab_2_4_1.mamba_state_bytes, lambda *a, **k: state(*a, **k, window=False), "convolution window is missing"),
    (lab_2_4_1.mamba_state_bytes, lambda c, *a, **k: state(c, *a, **k, channels=c.hidden_size), "not hidden_size"),
    (
        lab_2_4_1.mamba_state_bytes,
        lambda *a, **k: state(*a, **k, window_bytes=4),
        "Only the recurrent state is float32",
    ),
    (lab_2_4_1.mamba_state_bytes, lambda c, batch=1, bytes_per_value=2: state(c, 1, bytes_per_value), "by batch"),
    (lab_2_4_1.measure, timer(warm=False), "Warm up before"),
    (lab_2_4_1.measure, timer(before=False), "before you start the clock"),
    (lab_2_4_1.measure, timer(after=False), "before you read the end"),
    (lab_2_4_1.measure, timer(count_warmup=True), "do not count"),
    (lab_2_4_1.measure, timer(together=True), "Keep them apart"),
    (lab_2_4_1.growth_exponent, fit(lambda x: x, lambda y: y), "logarithm of the values against"),
    (lab_2_4_1.growth_exponent, fit(np.log, np.log10), "both with the same base"),
    (lab_2_4_1.growth_exponent, fit(dof=0), "n - 2"),
    (lab_2_4_1.growth_exponent, fit(dof=1), "not n - 1"),
    (lab_2_4_1.growth_exponent, fit(root=False), "square root"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: bw / (w + kv + 2 * s), "not once per sequence"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / w, "cache is read at every step"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + batch * (kv + s)), "moves twice"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: (w + batch * (kv + 2 * s)) / bw, "tokens per second"),
    (lab_2_4_1.decode_roofline, lambda w, kv, s, bw, batch=1: batch * bw / (w + kv + 2 * s), "by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: m // kv, "weights take their part"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) // kv, "divide by batch"),
    (lab_2_4_1.context_that_fits, lambda m, w, kv, state_bytes=0, batch=1: (m - w) / kv, "round down"),
    (
        lab_2_4_1.context_that_fits,
        lambda m, w, kv, state_bytes=0, batch=1: max(0, m - w - batch * state_bytes) // (batch * kv),
        "return math.inf",
    ),
]


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


WRONG += [
    (lab_2_4_6.without_gradient, faulty(no_gradient, zero=False), "zero everywhere teaches nothing"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, none=False), "has None for a gradient"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, frozen=True), "requires_grad first"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, alive=True), "the parameters that do get one"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, any_row=True), "One row with a gradient is enough"),
    (lab_2_4_6.without_gradient, faulty(no_gradient, keep=True), "stayed behind"),
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


@pytest.mark.parametrize(("check", "wrong", "named"), WRONG, ids=[f"{c.cell_id}: {n}" for c, _, n in WRONG])
def test_a_known_wrong_answer_is_refused_with_its_mistake_named(check, wrong, named, capsys):
    handed_back = check(wrong)
    said = capsys.readouterr().out
    assert checks.FAILED in said and named in said, said
    assert handed_back is not wrong


def test_every_check_refuses_at_least_one_known_wrong_answer():
    refused = {check.cell_id for check, _, _ in WRONG}
    assert refused == {cell_id for _, cell_id, _ in ALL}


def test_the_right_forms_of_the_wrong_answers_pass(capsys):
    """The helpers above are right without their fault: what is refused is the fault and nothing else."""
    for check, right in {
        lab_2_4_1.kv_cache_bytes: kv,
        lab_2_4_1.mamba_state_bytes: state,
        lab_2_4_1.measure: timer(),
        lab_2_4_1.growth_exponent: fit(),
        lab_2_4_2.sequential_scan: states,
        lab_2_4_2.discretise: discrete,
        lab_2_4_2.selection: selected,
        lab_2_4_2.chunked_scan: chunks,
        lab_2_4_2.fused_scan: fused,
        lab_2_4_2.mamba_block: block,
        lab_2_4_2.hidden_attention: unrolled,
        lab_2_4_3.parameter_parts: parts,
        lab_2_4_3.record: recorded,
        lab_2_4_3.document_counts: counted,
        lab_2_4_3.mutual_information: information,
        lab_2_4_3.permutation_test: permuted,
        lab_2_4_3.expected_by_token: by_words,
        lab_2_4_3.repetition: repeated,
        lab_2_4_5.windows: cut,
        lab_2_4_5.window_nll: nats,
        lab_2_4_5.yardsticks: measures,
        lab_2_4_5.paired_interval: interval,
        lab_2_4_5.first_and_decode: clocked(),
        lab_2_4_5.pareto: front,
        lab_2_4_5.decide: decided,
        lab_2_4_6.without_gradient: no_gradient,
        lab_2_4_6.rank_for: ranked,
        lab_2_4_6.adapt: with_lora,
        lab_2_4_6.encode: encoded,
        lab_2_4_6.collate: padded,
        lab_2_4_6.training_bytes: trained_bytes,
        lab_2_4_6.merged: merging,
        lab_2_4_4.softmax_router: softmax_first,
        lab_2_4_4.topk_router: choice_first,
        lab_2_4_4.biased_router: biased,
        lab_2_4_4.imbalance: faulty(four_numbers, over=0),
        lab_2_4_4.balancing_loss: balance,
        lab_2_4_4.within_capacity: fits,
        lab_2_4_4.bias_step: controlled,
    }.items():
        assert check(right) is right, capsys.readouterr().out
