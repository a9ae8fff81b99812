"""Checks of lab 2.4.6: each exercise on cases of a few numbers, tokens or layers, and the usual mistakes by name."""

import operator

import torch
from torch import nn

from shared import data
from shared.checks import Wrong, agree, as_tensor, case, exercise, expect, shown
from shared.checks.watch import changed, traces
from shared.kits import finetune

# ---- gradients ------------------------------------------------------------------------------------------------------


class _Mixed(nn.Module):
    """Parameters of every kind: used, used times zero, used with opposite signs, partly, hardly, never, and frozen."""

    def __init__(self, seed: int):
        super().__init__()
        kinds = ("never_used", "used", "switched_off", "frozen", "balanced", "hardly_used", "other_never_used")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for kind in kinds:
                setattr(self, kind, nn.Linear(3, 3, bias=False))
            self.one_row = nn.Embedding(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, tokens, labels):
        from transformers.modeling_outputs import CausalLMOutput

        x = self.one_row(tokens)
        there = torch.ones_like(x)
        spread = self.balanced(there)[..., 0] - self.balanced(there)[..., 1]  # its gradients sum to nothing
        little = 1e-9 * self.hardly_used(there)
        found = self.frozen(self.used(x)) + 0 * self.switched_off(x) + little
        return CausalLMOutput(loss=(found - labels).square().mean() + spread.mean())


def _dead(model: nn.Module) -> list[str]:
    """Names of the parameters of `_Mixed` that learn nothing, and do train, by the way it is built."""
    off = ("never_used.weight", "switched_off.weight", "other_never_used.weight")
    return [name for name, parameter in model.named_parameters() if name in off and parameter.requires_grad]


@exercise("2.4.6", "ex-without-gradient", changes=("model",))
def without_gradient(answer, random):
    tokens = torch.tensor([[1, 2]])
    model, batch = _Mixed(0), {"tokens": tokens, "labels": torch.ones(1, 2, 3)}
    never, off, other = _dead(model)
    mistakes = {
        "A gradient that is zero everywhere teaches nothing either: look at its values too.": [never, other],
        "A parameter that never met the loss has None for a gradient: that counts too.": [off],
        "Frozen parameters are not meant to have a gradient: ask for requires_grad first.": [
            never, off, "frozen.weight", other,
        ],
        "Those are the parameters that do get one.": [
            "used.weight", "balanced.weight", "hardly_used.weight", "one_row.weight",
        ],
        "One row with a gradient is enough: only a gradient that is zero everywhere counts.": [
            never, off, "balanced.weight", other, "one_row.weight",
        ],
        "A gradient may sum to zero and still teach: look at each of its values.": [
            never, off, "balanced.weight", other,
        ],
        "A gradient may be tiny and still teach: AdamW scales it. Only zero counts.": [
            never, off, "hardly_used.weight", other,
        ],
        "The order is that of the model's parameters.": sorted([never, off, other]),
    }  # fmt: skip
    _probed(answer, model, batch, [never, off, other], "parameters without a gradient", mistakes)
    _probed(answer, model, batch, [never, off, other], "the same model once more", mistakes)
    again = "a model on which another batch has left its gradients: zero_grad belongs before the backward pass"
    model(tokens=tokens, labels=batch["labels"]).loss.backward()
    for parameter in (model.switched_off.weight, model.never_used.weight):
        parameter.grad = torch.ones(3, 3)
    _probed(answer, model, batch, [never, off, other], again, mistakes)
    for part in ("never_used", "one_row"):
        getattr(model, part).requires_grad_(False)
    _probed(answer, model.eval(), batch, _dead(model), "the same with more of it frozen", mistakes)
    everything = _Mixed(1).requires_grad_(False)
    everything.used.requires_grad_(True)
    _probed(answer, everything, batch, [], "a model in which all that trains has a gradient", mistakes)
    adapted = _partly_dead()
    small = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "labels": torch.tensor([[-100, 6, 7, 8]])}
    _probed(answer, adapted, small, answer.own(adapted, small), "a small Mamba with adapters", mistakes)
    return "None and all zeros both mean that this batch teaches a parameter nothing."


def _partly_dead() -> nn.Module:
    """A small Mamba with an adapter at dt_proj, which the forward pass never calls, and at in_proj."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["in_proj", "dt_proj"], task_type="CAUSAL_LM")
    return get_peft_model(_small("mamba"), config).eval()


def _probed(answer, model: nn.Module, batch: dict, right: list[str], what: str, mistakes: dict) -> None:
    before = traces(model)
    old = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    came = answer(model, dict(batch))
    expect(list(came) if isinstance(came, tuple) else came, right, what, mistakes)
    left = {name: p.grad for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    if not all(name in old and torch.equal(old[name], gradient) for name, gradient in left.items()):
        raise Wrong("gradients were left behind, and the next step would add to them: call zero_grad at the end.")
    if fault := changed(before, traces(model) | {"gradients": before["gradients"]}):
        raise Wrong(f"the model {fault}")


# ---- rank -----------------------------------------------------------------------------------------------------------


@exercise("2.4.6", "ex-rank-for")
def rank_for(answer, random):
    two = [(256, 64), (20, 128)] * 2
    cases = [
        case("rank for two layers with (256, 64) and (20, 128), 66,496 parameters, below 20 %", two, 66_496, 0.2),
        case("rank where rank 1 trains 10 of 100, below 10 %", [(5, 5)], 90, 0.1),
        case("rank where rank 2 trains 20 of 40, below 50 %", [(5, 5)], 20, 0.5),
        case("rank where even rank 1 is too many", two, 1000, 0.01),
        case("rank for one matrix, below 75 %", [(12, 4)], 10_000, 0.75),
        case("rank for a large model, below 1 %", [(10_240, 2560), (192, 5120)] * 64, 2_768_345_600, 0.01),
    ]
    for _ in range(20):
        shapes = [(random.randint(2, 300), random.randint(2, 300)) for _ in range(random.randint(1, 5))]
        parameters, limit = random.randint(1000, 200_000), random.choice([0.03, 0.1, 0.3, 0.6])
        cases.append(case(f"rank for {shapes} in {parameters:,}, below {limit:.0%}", shapes, parameters, limit))
    mistakes = {
        "An adapter has two thin matrices, (rank, inputs) and (outputs, rank): their sizes add up.": _largest(
            lambda o, i: o * i
        ),
        "Only A was counted: B has outputs times rank more.": _largest(lambda o, i: i),
        "Only B was counted: A has inputs times rank more.": _largest(lambda o, i: o),
        "The adapters count among all parameters, as in peft's own report.": _largest(counted=0),
        "That rank is already too many: the largest one below the limit is one less.": _largest(over=1),
        "Below the limit, not at it.": _largest(at=True),
        "0 says that none fits.": _largest(least=1),
    }
    agree(answer, cases, mistakes)
    if isinstance(came := cases[0].of(answer), float):
        raise Wrong(f"a rank is a whole number, an int, as LoraConfig takes it; got {came!r}.")
    return "two thin matrices for each wide one, and they count among all."


def _largest(per=lambda outputs, inputs: outputs + inputs, counted=1, over=0, at=False, least=0):
    """The rule of the exercise, with its faults."""

    def rank_for(shapes, parameters, limit):
        each = sum(per(o, i) for o, i in shapes)
        below = operator.le if at else operator.lt
        fits = [r for r in range(1, 4000) if below(r * each, limit * (parameters + counted * r * each))]
        return max(least, max(fits, default=0) + over)

    return rank_for


# ---- adapters -------------------------------------------------------------------------------------------------------


def _small(kind: str, layers: int = 2) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, MambaConfig

    shape = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": layers, "pad_token_id": 0}
    shape |= {"eos_token_id": 1, "bos_token_id": 1}
    if kind == "mamba":
        config = MambaConfig(**shape, state_size=4, initializer_range=0.3)
    else:
        config = GPTNeoXConfig(**shape, intermediate_size=32, num_attention_heads=2, max_position_embeddings=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _adapters(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that have an adapter, by their name in the base model."""
    parts = ("lora_A", "lora_embedding_A")
    found = {name: module for name, module in model.named_modules() if any(getattr(module, p, None) for p in parts)}
    return {name.removeprefix("base_model.model."): module for name, module in found.items()}


@exercise("2.4.6", "ex-adapt", seconds=3, changes=("model",))
def adapt(answer, random):
    from peft import PeftModel

    ids = torch.tensor([[5, 6, 7, 8]])
    for kind, layers, rank in (("mamba", 2, 3), ("gpt_neox", 2, 3), ("mamba", 3, 1), ("gpt_neox", 1, 8)):
        base = _small(kind, layers).eval()
        weights = [parameter.detach().clone() for parameter in base.parameters()]
        with torch.no_grad():
            before = base(ids, use_cache=False).logits
        model = answer(base, rank)
        what = f"{kind} with {layers} layers at rank {rank}"
        if not isinstance(model, nn.Module):
            raise Wrong(f"expected a model with adapters, got {shown(model)}.")
        names = list(finetune.trainable(model))
        if not isinstance(model, PeftModel) and names:
            raise Wrong("expected a PeftModel, as get_peft_model returns it: the lab merges and saves it later.")
        if not names:
            raise Wrong("nothing trains: no adapter was added (LoRA on nothing). get_peft_model adds them.")
        if foreign := [name for name in names if "lora_" not in name]:
            raise Wrong(
                f"{len(foreign)} weights of the base train too, the first {foreign[0]}: only the adapters should. "
                "get_peft_model freezes the base by itself."
            )
        own = answer.own(_small(kind, layers), rank)
        _places(kind, _adapters(model), _adapters(own))
        for name, module in _adapters(model).items():
            _same_kind(f"{what}, {name}", module, rank)
        if more := set(names) - set(finetune.trainable(own)):
            raise Wrong(f"{what}: {min(more)} trains too, and plain LoRA has two matrices beside each one, no more.")
        if missing := set(finetune.trainable(own)) - {name for name in names if "lora_" in name}:
            raise Wrong(f"{what}: {min(missing)} does not train, and an adapter needs both its matrices.")
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        if any(one.dtype != other.dtype for one, other in zip(frozen, weights, strict=True)):
            raise Wrong(f"{what}: the base has got another dtype: leave its weights as they were.")
        if not all(map(torch.equal, frozen, weights)):
            raise Wrong(f"{what}: weights of the base have changed: an adapter stands beside them.")
        with torch.no_grad():
            after = model(input_ids=ids, use_cache=False).logits
        expect(after, before, f"{what}: logits before the first step, when an adapter does nothing yet")
    return "in_proj and x_proj of Mamba, query_key_value of the transformer; the base is frozen."


def _same_kind(what: str, module: nn.Module, rank: int) -> None:
    """`Wrong` where an adapter is not plain LoRA of this rank, scaled by 2, without dropout."""
    (came,) = module.r.values()
    expect(came, rank, f"{what}: rank of the adapter", {"The rank is an argument of yours: pass it on as r.": 8})
    (scaling,) = module.scaling.values()
    expect(
        scaling,
        2,
        f"{what}: scaling, lora_alpha / r",
        {
            "peft's default of 8 for lora_alpha scales each rank differently: 2 is meant.": 8 / rank,
            "rslora divides by the root of the rank: plain LoRA divides by the rank.": 2 * rank**0.5,
        },
    )
    if not any(part.any() for name, part in module.named_parameters() if "lora_" in name):
        raise Wrong(f"{what}: all of the adapter is zero, so neither matrix gets a gradient: B alone begins at zero.")
    if any(getattr(dropout, "p", 0) for dropout in module.lora_dropout.values()):
        raise Wrong("dropout was asked for: leave it out, so that training loss and evaluation loss compare.")
    if getattr(module, "lora_variant", None):
        raise Wrong(f"{what}: that is another method than LoRA (use_dora or its like): plain LoRA is meant.")


def _places(kind: str, came: dict, wanted: dict) -> None:
    """`Wrong`, by name, where adapters stand at other modules than those wanted."""
    reasons = {
        "dt_proj": "the mixer multiplies by dt_proj.weight itself and never calls the module, so an adapter is dead.",
        "embeddings": "the head is tied to the embeddings: it trains, and merging it goes silently wrong.",
        "embed_in": "the embeddings stay as they are here.",
    }
    for name in sorted(came.keys() - wanted.keys()):
        reason = reasons.get(name.split(".")[-1], "Only what the lab found by gradient.")
        raise Wrong(f"{kind}: {name} has an adapter. {reason}")
    if missing := sorted(wanted.keys() - came.keys()):
        modules = sorted({name.split(".")[-1] for name in missing})
        some = {name.split(".")[-1] for name in came} & set(modules)
        where = " in some layers" if some else ""
        said = f"{' and '.join(modules)} has no adapter{where}"
        raise Wrong(f"{kind}: {said}, and its module is called in every forward pass.")


# ---- examples -------------------------------------------------------------------------------------------------------


def _tokenizers():
    """The tokenizer of the lab, the one of the other tiny models, and one whose end of text is another token."""
    from transformers import AutoTokenizer

    options = {"model_max_length": 100_000}  # shorter, it would warn of the long example
    for folder in (finetune.INSTRUCT / "tokenizer", finetune.INSTRUCT.parent / "tokenizer"):
        yield AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    options["eos_token"] = "<unk>"
    yield AutoTokenizer.from_pretrained(finetune.INSTRUCT / "tokenizer", trust_remote_code=False, **options)


@exercise("2.4.6", "ex-encode")
def encode(answer, random):
    examples = [
        {"instruction": "Swap the words.", "input": "river stone", "output": "stone river"},
        {"instruction": "Name the first word.", "input": "", "output": "river"},
        {"instruction": "Name the first word.", "output": "river"},
        {"instruction": "Say: mask = -100", "input": "if x:\n    y = 1", "output": "naïve, 3 words:\n\nlike these"},
        {"instruction": "  Say it IN Capitals.", "input": "    y = 1", "output": "River Stone"},
        {"instruction": "Repeat.", "input": "river stone " * 500, "output": "stone river " * 499 + "stone"},
    ]
    for tokenizer in _tokenizers():
        end = tokenizer.eos_token_id
        for example in examples:
            came = answer(dict(example), tokenizer)
            prompt = tokenizer(data.format_instruction({**example, "output": ""}))["input_ids"]
            response = tokenizer(example["output"])["input_ids"]
            ids, hidden = [*prompt, *response, end], [-100] * len(prompt)
            learned = [*response, end]
            lists = {key: came[key] for key in ("input_ids", "labels") if hasattr(came, "keys") and key in came}
            if len(lists) < 2:
                raise Wrong(f'expected a dict with "input_ids" and "labels", got {shown(came)}.')
            what = f"of {example['instruction']!r}"
            expect(lists["input_ids"], ids, f"input_ids {what}", {
                "The end-of-text token is missing: without it the model never learns to stop.": [*prompt, *response],
                "The end-of-text token comes after the response, and once.": [*ids, end],
                "The response is missing.": [*prompt, end],
                "The prompt is missing: a response has to be learned after its instruction.": learned,
            })  # fmt: skip
            expect(lists["labels"], hidden + learned, f"labels {what}", {
                "The prompt is not masked: its labels have to be -100, or the model learns to write instructions.": ids,
                "The end-of-text token is masked: the model has to learn where a response ends.": [
                    *hidden, *response, -100,
                ],
                "The labels are shifted: transformers shifts them by itself.": [*hidden[1:], *learned, -100],
                "It is the prompt that is masked, and the response that is learned.": prompt + [-100] * len(learned),
                "One token too few is masked: the last one of the prompt is not learned.": [
                    *hidden[:-1], prompt[-1], *learned,
                ],
            })  # fmt: skip
            if not all(isinstance(tokens, list) for tokens in lists.values()):
                raise Wrong("lists are meant, to which others can add: call .tolist() on a tensor or an array.")
    return "the prompt is read, the response and its end are learned."


@exercise("2.4.6", "ex-collate")
def collate(answer, random):
    end = 1
    rows = [[5, 6, 7, end], [5, end], [8, end, 6, end]]  # with the end-of-text token inside one, too
    cases = [case("three examples, pad_id = end of text", _features(rows), end)]
    cases += [case("three examples, pad_id = 0", _features(rows), 0)]
    cases += [case("one example", _features(rows[1:2]), 0), case("two of one length", _features([[3, 2], [2, 3]]), 3)]
    for pad in (end, 9, 0):
        long = [[random.randrange(12) for _ in range(random.randint(3, 40))] for _ in range(random.randint(2, 9))]
        cases.append(case(f"{len(long)} examples of different lengths, pad_id = {pad}", _features(long), pad))
    cases.append(case("examples of 3,000 and 2 tokens", _features([[7, 8, end] * 1000, [5, end]]), 0))
    cases.append(case("two examples, pad_id by its name", _features(rows[:2]), pad_id=9))
    by_id = "mask by length, not by id (pad = eos)."
    mistakes = {
        "Padding goes to the right for training; to the left it goes when the model generates.": _filled(left=True),
        f"The real end-of-text tokens are masked, since pad and end have one id: {by_id}": _filled(labels_by_id=True),
        f"The real end-of-text tokens are hidden: {by_id}": _filled(mask_by_id=True),
        f"The real end-of-text tokens are masked and hidden: {by_id}": _filled(labels_by_id=True, mask_by_id=True),
        "Padding is learned: fill the labels with -100, not with pad_id.": _filled(learned=True),
        "Padding is not hidden: the mask is 0 there.": _filled(hidden=False),
        "1 is a token, 0 is padding: that is the wrong way round.": _filled(swapped=True),
        "Labels are what the examples say, not the tokens once more: an example's prompt has -100.": _filled(copy=True),
    }
    for one in cases:
        came = one.of(answer)
        agree(answer, [one], mistakes)
        for key, tensor in came.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64:
                raise Wrong(f"{key}: expected an int64 tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}.")
    return "filled up at the right, and no padding is learned, also where pad and end are one token."


def _features(rows: list[list[int]]) -> list[dict]:
    """Encoded examples, of whose prompts the first tokens are masked."""
    return [{"input_ids": row, "labels": [-100] * (1 + len(row) // 3) + row[1 + len(row) // 3 :]} for row in rows]


def _filled(left=False, labels_by_id=False, mask_by_id=False, learned=False, hidden=True, swapped=False, copy=False):
    """The rule of the exercise, with its faults."""

    def collate(features, pad_id):
        T = max(len(feature["input_ids"]) for feature in features)

        def full(row, value):
            rest = [value] * (T - len(row))
            return rest + row if left else row + rest

        ids = torch.tensor([full(f["input_ids"], pad_id) for f in features])
        labels = torch.tensor([full(f["labels"], pad_id if learned else -100) for f in features])
        mask = torch.tensor([full([1] * len(f["labels"]), int(not hidden)) for f in features])
        mask = (ids != pad_id).long() if mask_by_id else mask
        labels = ids.masked_fill(mask == 0, -100) if copy else labels
        labels = labels.masked_fill(ids == pad_id, -100) if labels_by_id else labels
        return {"input_ids": ids, "attention_mask": 1 - mask if swapped else mask, "labels": labels}

    return collate


# ---- memory and merging ---------------------------------------------------------------------------------------------


@exercise("2.4.6", "ex-training-bytes")
def training_bytes(answer, random):
    cases = [
        case("bytes for 1,000 frozen and 10 trained parameters", 1000, 10),
        case("the same with frozen weights in bfloat16", 1000, 10, 2),
        case("the same by name", 1000, 10, frozen_size=2),
        case("nothing frozen", 0, 7),
        case("nothing trained", 7, 0, 1),
        case("a large model", 2_768_345_600, 27_000_000, 2),
    ]
    cases += [
        case("other numbers", random.randrange(10**6), random.randrange(10**6), random.choice([1, 2, 4, 8]))
        for _ in range(5)
    ]
    mistakes = {
        "Frozen weights have no gradient and no moments: they take 4 bytes each.": _bytes(frozen_more=12),
        "A gradient is kept for what trains, not for frozen weights.": _bytes(frozen_more=4),
        "AdamW keeps two moments for each trained parameter.": _bytes(trained_each=12),
        "Frozen weights are there too, 4 bytes each.": _bytes(frozen_counted=0),
        "Moments and weights are there; the gradient has 4 bytes as well, and so has the weight.": _bytes(
            trained_each=8
        ),
        "frozen_size is not used: in bfloat16 a frozen weight has 2 bytes.": _bytes(size_used=False),
        "What trains stays in float32, with its gradient and moments.": (
            lambda frozen, trained, frozen_size=4: (frozen + 4 * trained) * frozen_size
        ),
        "The weight of what trains is float32 too.": (
            lambda frozen, trained, frozen_size=4: (frozen + trained) * frozen_size + 12 * trained
        ),
    }
    agree(answer, cases, mistakes)
    return "16 bytes for each parameter that trains, its size alone for each that does not."


def _bytes(frozen_more=0, trained_each=16, frozen_counted=1, size_used=True):
    """The rule of the exercise, with its faults."""

    def training_bytes(frozen, trained, frozen_size=4):
        each = (frozen_size if size_used else 4) + frozen_more
        return frozen_counted * frozen * each + trained * trained_each

    return training_bytes


@exercise("2.4.6", "ex-merged")
def merged(answer, random):
    def matrices(outputs, inputs, rank, alpha, kind=torch.float64):
        draw = torch.Generator().manual_seed(random.randrange(2**31))
        shapes = ((outputs, inputs), (rank, inputs), (outputs, rank))
        weight, A, B = (torch.randn(shape, generator=draw, dtype=kind) for shape in shapes)
        what = f"a {(outputs, inputs)} weight with an adapter of rank {rank} and alpha {alpha}"
        return case(what, weight, A, B, alpha)

    cases = [matrices(5, 4, 2, 6.0), matrices(4, 5, 1, 2.0), matrices(3, 3, 3, 3.0)]
    cases += [matrices(6, 8, 4, 7, torch.float32), matrices(7, 6, 5, 0.5)]
    learned = matrices(5, 4, 2, 7.0, torch.float32)
    learned.args[1].requires_grad_()
    learned.args[2].requires_grad_()
    mistakes = {
        "The scaling is missing: alpha / rank times B A.": lambda W, A, B, alpha: W + B @ A,
        "alpha is divided by the rank: the scaling is alpha / rank.": lambda W, A, B, alpha: W + alpha * B @ A,
        "The scaling is alpha / rank, not rank / alpha.": lambda W, A, B, alpha: W + len(A) / alpha * B @ A,
        "The weight itself is missing: an adapter is added to it.": lambda W, A, B, alpha: alpha / len(A) * B @ A,
        "The adapter is added to the weight, not taken from it.": lambda W, A, B, alpha: W - alpha / len(A) * B @ A,
        "That is transposed: B (outputs, rank) times A (rank, inputs) has the shape of the weight.": (
            lambda W, A, B, alpha: (W + alpha / len(A) * B @ A).T
        ),
        "The rank is the number of A's rows, whatever the matrix: alpha / rank.": (
            lambda W, A, B, alpha: W + alpha / A.shape[1] * B @ A
        ),
    }
    by_name = case("alpha by its name", *cases[0].args[:3], alpha=5.0)
    agree(answer, [*cases, by_name, learned], mistakes)
    weight, A, B, alpha = matrices(3, 4, 2, 4.0).args
    came = as_tensor(answer(weight, A, 0 * B, alpha))
    expect(came, weight, "the weight with an adapter that has learned nothing yet, B = 0")
    if came.data_ptr() == weight.data_ptr():
        raise Wrong("with B = 0 that is the weight itself, and who changes one changes both: a new tensor is meant.")
    return "one matrix again, of the old shape: an adapter costs nothing once it is merged."
