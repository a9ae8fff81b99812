"""Checks of lab 2.4.6: each exercise on cases of a few numbers or tokens, and the usual mistakes by name."""

from types import SimpleNamespace

import torch
from torch import nn

from shared import data
from shared.checks import Wrong, exercise, expect, expect_close
from shared.kits import finetune

# ---- gradients ------------------------------------------------------------------------------------------------------


class _Mixed(nn.Module):
    """Parameters of every kind: used, used times zero, partly used, never used, and frozen."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.used, self.switched_off, self.never_used, self.frozen = (nn.Linear(3, 3, bias=False) for _ in range(4))
            self.one_row = nn.Embedding(5, 3)
        self.frozen.requires_grad_(False)

    def forward(self, ids, labels):
        x = self.one_row(ids)
        return SimpleNamespace(loss=(self.frozen(self.used(x)) + 0 * self.switched_off(x) - labels).square().mean())


@exercise("2.4.6", "ex-without-gradient")
def without_gradient(answer):
    model, batch = _Mixed(), {"ids": torch.tensor([[1, 2]]), "labels": torch.ones(1, 2, 3)}
    came = answer(model, batch)
    off, never = "switched_off.weight", "never_used.weight"
    if not isinstance(came, (list, tuple, set)):
        raise Wrong(f"expected a list of names, got {came!r}.")
    came = sorted(map(str, came))
    mistakes = {
        "A gradient that is zero everywhere teaches nothing either: look at its values too.": [never],
        "A parameter that never met the loss has None for a gradient: that counts too.": [off],
        "Frozen parameters are not meant to have a gradient: ask for requires_grad first.": sorted(
            [never, off, "frozen.weight"]
        ),
        "Those are the parameters that do get one.": sorted(["used.weight", "one_row.weight"]),
        "One row with a gradient is enough: only a gradient that is zero everywhere counts.": sorted(
            [never, off, "one_row.weight"]
        ),
    }
    expect(came, sorted([never, off]), "parameters without a gradient", mistakes)
    if any(p.grad is not None and p.grad.any() for p in model.parameters()):
        raise Wrong("gradients stayed behind, and the next step would add to them: call zero_grad at the end.")
    if sorted(map(str, answer(model, batch))) != came:
        raise Wrong("a second call on the same model gave something else: zero_grad belongs before the backward pass.")
    return "None and all zeros both mean that an adapter learns nothing."


# ---- rank -----------------------------------------------------------------------------------------------------------


@exercise("2.4.6", "ex-rank-for")
def rank_for(answer):
    shapes, parameters = [(256, 64), (20, 128)] * 2, 66_496

    def largest(per_rank, limit=0.2, counted=1, parameters=parameters):
        return max(r for r in range(20_000) if r * per_rank < limit * (parameters + counted * r * per_rank) or r == 0)

    per_rank = sum(o + i for o, i in shapes)
    right = largest(per_rank)
    expect(
        answer(shapes, parameters, 0.2),
        right,
        "rank for two layers with (256, 64) and (20, 128), 66,496 parameters, below 20 %",
        {
            "An adapter has two thin matrices, (rank, inputs) and (outputs, rank): their sizes add up.": largest(
                sum(o * i for o, i in shapes)
            ),
            "Only A was counted: B has outputs times rank more.": largest(sum(i for _, i in shapes)),
            "Only B was counted: A has inputs times rank more.": largest(sum(o for o, _ in shapes)),
            "The adapters count among all parameters, as in peft's own report.": largest(per_rank, counted=0),
            "That rank is already too many: the largest one below the limit is one less.": right + 1,
        },
    )
    expect(
        answer([(5, 5)], 90, 0.1),
        0,
        "rank where rank 1 trains 10 of 100, below 10 %",
        {"Below the limit, not at it.": 1},
    )
    expect(answer(shapes, 1000, 0.01), 0, "rank where even rank 1 is too many", {"0 says that none fits.": 1})
    return "two thin matrices for each wide one, and they count among all."


# ---- adapters -------------------------------------------------------------------------------------------------------


def _small(kind: str) -> nn.Module:
    from transformers import AutoModelForCausalLM, GPTNeoXConfig, MambaConfig

    shape = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
    shape |= {"eos_token_id": 1, "bos_token_id": 1}
    if kind == "mamba":
        config = MambaConfig(**shape, state_size=4, initializer_range=0.3)
    else:
        config = GPTNeoXConfig(**shape, intermediate_size=32, num_attention_heads=2, max_position_embeddings=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


def _adapted(names) -> set[str]:
    """The modules that adapters stand at, by the last part of their names."""
    return set(map(finetune.module_of, names))


@exercise("2.4.6", "ex-adapt")
def adapt(answer):
    ids = torch.tensor([[5, 6, 7, 8]])
    for kind, wanted in (("mamba", {"in_proj", "x_proj"}), ("gpt_neox", {"query_key_value"})):
        base = _small(kind)
        with torch.no_grad():
            before = base(ids, use_cache=False).logits
        model = answer(base, 3)
        if not isinstance(model, nn.Module):
            raise Wrong(f"expected a model with adapters, got {model!r}.")
        names = list(finetune.trainable(model))
        if not names:
            raise Wrong("nothing trains: no adapter was added (LoRA on nothing). get_peft_model adds them.")
        if foreign := [name for name in names if "lora_" not in name]:
            raise Wrong(
                f"{len(foreign)} weights of the base train too, the first {foreign[0]}: only the adapters should. "
                "get_peft_model freezes the base by itself."
            )
        _places(kind, _adapted(names), wanted)
        config = next(iter(model.peft_config.values()))
        expect(config.r, 3, "rank of the adapters", {"The rank is an argument of yours: pass it on as r.": 8})
        expect(
            config.lora_alpha,
            6,
            "lora_alpha at rank 3",
            {"peft's default of 8 scales each rank differently: the scaling is lora_alpha / r, and 2 is meant.": 8},
        )
        if config.lora_dropout:
            raise Wrong("dropout was asked for: leave it out, so that training loss and evaluation loss compare.")
        with torch.no_grad():
            after = model(input_ids=ids, use_cache=False).logits
        expect_close(after, before, "logits before the first step, when an adapter does nothing yet")
    return "in_proj and x_proj of Mamba, query_key_value of the transformer; the base is frozen."


def _places(kind: str, came: set[str], wanted: set[str]) -> None:
    """`Wrong`, by name, where adapters stand at other modules than those wanted."""
    reasons = {
        "dt_proj": "the mixer multiplies by dt_proj.weight itself and never calls the module, so an adapter is dead.",
        "embeddings": "the head is tied to the embeddings: it trains, and merging it goes silently wrong.",
        "embed_in": "the embeddings stay as they are here.",
    }
    for name in sorted(came - wanted):
        raise Wrong(f"{kind}: {name} has an adapter. " + reasons.get(name, "Only what the lab found by gradient."))
    if missing := sorted(wanted - came):
        raise Wrong(f"{kind}: {', '.join(missing)} has no adapter, and its module is called in every forward pass.")


# ---- examples -------------------------------------------------------------------------------------------------------


@exercise("2.4.6", "ex-encode")
def encode(answer):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(finetune.INSTRUCT / "tokenizer", trust_remote_code=False)
    for example in (
        {"instruction": "Swap the words.", "input": "river stone", "output": "stone river"},
        {"instruction": "Name the first word.", "input": "", "output": "river"},
    ):
        came = answer(dict(example), tokenizer)
        if not isinstance(came, dict) or not {"input_ids", "labels"} <= set(came):
            raise Wrong(f'expected a dict with "input_ids" and "labels", got {came!r}.')
        prompt = tokenizer(data.format_instruction({**example, "output": ""}))["input_ids"]
        response, eos, hidden = tokenizer(example["output"])["input_ids"], tokenizer.eos_token_id, [-100]
        ids = prompt + response + [eos]
        expect(
            list(came["input_ids"]),
            ids,
            "input_ids",
            {
                "The end-of-text token is missing: without it the model never learns to stop.": prompt + response,
                "The end-of-text token comes after the response, and once.": [*ids, eos],
                "The response is missing.": [*prompt, eos],
                "The prompt is missing: a response has to be learned after its instruction.": [*response, eos],
            },
        )
        masked, learned = hidden * len(prompt), [*response, eos]
        expect(
            list(came["labels"]),
            masked + learned,
            "labels",
            {
                "The prompt is not masked: its labels have to be -100, or the model learns to write instructions.": ids,
                "The end-of-text token is masked: the model has to learn where a response ends.": [
                    *masked,
                    *response,
                    -100,
                ],
                "The labels are shifted: transformers shifts them by itself.": [*masked[1:], *learned, -100],
                "It is the prompt that is masked, and the response that is learned.": prompt + hidden * len(learned),
                "One token too few is masked: the last one of the prompt is not learned.": [
                    *masked[:-1],
                    prompt[-1],
                    *learned,
                ],
            },
        )
    return "the prompt is read, the response and its end are learned."


@exercise("2.4.6", "ex-collate")
def collate(answer):
    eos = 1
    rows = [[5, 6, 7, eos], [5, eos], [8, 6, eos]]
    features = [{"input_ids": row, "labels": [-100, *row[1:]]} for row in rows]
    for pad in (0, eos):
        came = answer([{key: list(value) for key, value in f.items()} for f in features], pad)
        if not isinstance(came, dict) or not {"input_ids", "labels", "attention_mask"} <= set(came):
            raise Wrong('expected a dict with "input_ids", "attention_mask" and "labels".')
        for key, tensor in came.items():
            if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.int64:
                raise Wrong(f"{key}: expected an int64 tensor, got {type(tensor).__name__}.")
        case = "pad_id = end of text" if pad == eos else "pad_id = 0"
        fill = lambda key, value: [f[key] + [value] * (4 - len(f[key])) for f in features]  # noqa: E731
        left = [[pad] * (4 - len(row)) + row for row in rows]
        expect(
            came["input_ids"].tolist(),
            fill("input_ids", pad),
            f"input_ids, {case}",
            {"Padding goes to the right for training; to the left it goes when the model generates.": left},
        )
        labels = fill("labels", -100)
        by_id = [[-100 if token == pad else token for token in row] for row in labels]
        expect(
            came["labels"].tolist(),
            labels,
            f"labels, {case}",
            {
                "The real end-of-text tokens are masked, since pad and end have one id: mask by length, not by id "
                "(pad = eos).": by_id,
                "Padding is learned: fill the labels with -100, not with pad_id.": fill("labels", pad),
            },
        )
        mask = [[1] * len(row) + [0] * (4 - len(row)) for row in rows]
        expect(
            came["attention_mask"].tolist(),
            mask,
            f"attention_mask, {case}",
            {
                "Padding is not hidden: the mask is 0 there.": [[1] * 4] * 3,
                "The real end-of-text tokens are hidden: mask by length, not by id (pad = eos).": [
                    [int(token != pad) for token in row] for row in fill("input_ids", pad)
                ],
                "1 is a token, 0 is padding: that is the wrong way round.": [[1 - m for m in row] for row in mask],
            },
        )
    return "filled up at the right, and no padding is learned, also where pad and end are one token."


# ---- memory and merging ---------------------------------------------------------------------------------------------


@exercise("2.4.6", "ex-training-bytes")
def training_bytes(answer):
    frozen, trained = 1000, 10
    expect(
        answer(frozen, trained),
        frozen * 4 + trained * 16,
        "bytes for 1,000 frozen and 10 trained parameters",
        {
            "Frozen weights have no gradient and no moments: they take 4 bytes each.": (frozen + trained) * 16,
            "A gradient is kept for what trains, not for frozen weights.": frozen * 8 + trained * 16,
            "AdamW keeps two moments for each trained parameter.": frozen * 4 + trained * 12,
            "Frozen weights are there too, 4 bytes each.": trained * 16,
            "Moments and weights are there; the gradient has 4 bytes as well, and so has the weight.": frozen * 4
            + trained * 8,
        },
    )
    expect(
        answer(frozen, trained, 2),
        frozen * 2 + trained * 16,
        "the same with frozen weights in bfloat16",
        {
            "frozen_size is not used: in bfloat16 a frozen weight has 2 bytes.": frozen * 4 + trained * 16,
            "What trains stays in float32, with its gradient and moments.": frozen * 2 + trained * 8,
            "The weight of what trains is float32 too.": frozen * 2 + trained * 14,
        },
    )
    return "16 bytes for each parameter that trains, its size alone for each that does not."


@exercise("2.4.6", "ex-merged")
def merged(answer):
    generator = torch.Generator().manual_seed(0)
    W, A, B = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, 4), (2, 4), (5, 2)))
    given = [x.clone() for x in (W, A, B)]
    came = answer(*given, 6.0)
    if not all(torch.equal(g, x) for g, x in zip(given, (W, A, B), strict=True)):
        raise Wrong("the arguments were changed: return a new tensor, the base is still needed.")
    expect_close(
        came,
        W + 3 * B @ A,
        "a (5, 4) weight with an adapter of rank 2 and alpha 6",
        {
            "The scaling is missing: alpha / rank times B A.": lambda: W + B @ A,
            "alpha is divided by the rank: the scaling is alpha / rank.": lambda: W + 6 * B @ A,
            "The scaling is alpha / rank, not rank / alpha.": lambda: W + B @ A / 3,
            "The weight itself is missing: an adapter is added to it.": lambda: 3 * B @ A,
            "The adapter is added to the weight, not taken from it.": lambda: W - 3 * B @ A,
            "That is transposed: B (outputs, rank) times A (rank, inputs) has the shape of the weight.": lambda: (
                (W + 3 * B @ A).T
            ),
        },
    )
    return "one matrix again, of the old shape: an adapter costs nothing once it is merged."
