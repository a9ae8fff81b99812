"""What lab 2.4.3 takes from shared/kits/routing.py: texts through a model, pushed routers, p values of many layers."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import MIXTRAL, SMALL

from shared import experts, models
from shared.errors import BadInput
from shared.kits import routing, significance

TEXTS = ["Story: The old man sat by the river.", "def f(x):\n    return x", "Premises: All birches are trees. " * 30]
TINY_MOE = ("tiny/olmoe", "tiny/olmoe-collapsed", "tiny/deepseek-moe", "tiny/jamba")


@pytest.fixture(scope="module")
def olmoe():
    return models.load("tiny/olmoe", dtype=torch.float32, device="cpu")


# ---- texts through a model -------------------------------------------------------------------------------------------


def test_each_text_is_routed_as_if_it_were_alone(olmoe):
    model, tokenizer = olmoe
    together = routing.route(model, tokenizer, TEXTS, batch=2)
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text)["input_ids"][: routing.LONGEST]
        with experts.capture(model) as trace, torch.inference_mode():
            model(input_ids=torch.tensor([[tokenizer.eos_token_id, *ids]]))
        assert together.tokens[number, : len(ids)].tolist() == ids
        assert (together.tokens[number, len(ids) :] == -1).all()
        for layer, indices in together.indices.items():
            assert torch.equal(indices[number, : len(ids)].sort().values, trace.indices[layer][0, 1:].sort().values)
            assert (indices[number, len(ids) :] == -1).all()
            weights = together.weights[layer][number, : len(ids)]
            torch.testing.assert_close(weights, trace.weights[layer][0, 1:], rtol=0, atol=1e-5)


def test_a_long_text_is_cut_and_an_empty_one_refused(olmoe):
    assert routing.route(*olmoe, TEXTS, longest=7).tokens.shape == (3, 7)
    with pytest.raises(BadInput, match="empty text"):
        routing.route(*olmoe, ["Story: once", ""])


def test_what_is_left_out_of_a_long_text_is_counted(olmoe):
    lengths = [len(row) for row in olmoe[1](TEXTS)["input_ids"]]
    assert max(lengths) > routing.LONGEST
    for longest in (7, routing.LONGEST, max(lengths)):
        routed = routing.route(*olmoe, TEXTS, longest=longest)
        read = (routed.tokens >= 0).sum(1)
        assert (read + routed.left_out).tolist() == lengths and int(read.max()) <= longest


def test_one_text_is_taken_as_a_list_of_it_and_what_is_no_text_is_refused(olmoe):
    one = routing.route(*olmoe, "one text")
    assert torch.equal(one.tokens, routing.route(*olmoe, ["one text"]).tokens)
    with pytest.raises(BadInput, match="empty text"):
        routing.route(*olmoe, [])
    for wrong in (None, 5):
        with pytest.raises(BadInput, match=f"not of type {type(wrong).__name__}"):
            routing.route(*olmoe, ["one text", wrong])
    with pytest.raises(BadInput, match="without a tokenizer"):
        routing.route(olmoe[0], None, ["one text"])
    with pytest.raises(BadInput, match=r"^Text 1 has a lone surrogate, '\\udcff', at character 4, "):
        routing.route(*olmoe, ["one text", "some\udcff"])
    for wrong in (5, None):
        with pytest.raises(BadInput, match=f"A text to route .* not of type {type(wrong).__name__}"):
            routing.route(*olmoe, wrong)


WRITTEN = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(texts=st.lists(WRITTEN, min_size=1, max_size=4))
@settings(max_examples=8)
def test_every_token_of_any_texts_goes_to_k_experts_of_each_layer(olmoe, texts):
    model, tokenizer = olmoe
    routed = routing.route(model, tokenizer, texts, batch=2)
    tokens = sum(len(row) for row in tokenizer(texts)["input_ids"])
    assert (routed.tokens >= 0).sum() == tokens
    for layer, chosen in routed.indices.items():
        real = chosen[routed.tokens >= 0]
        counts = torch.bincount(real.flatten(), minlength=routing.number_of_experts(model))
        assert counts.sum() == tokens * model.config.num_experts_per_tok and counts.max() <= tokens
        assert (chosen[routed.tokens < 0] == -1).all() and (routed.weights[layer][routed.tokens >= 0] >= 0).all()


def counts(model, tokenizer, texts) -> dict[int, torch.Tensor]:
    """How often each expert of each layer is chosen, each text by itself."""
    E = routing.number_of_experts(model)
    chosen = routing.route(model, tokenizer, texts, batch=1).indices
    return {layer: torch.bincount(indices[indices >= 0], minlength=E) for layer, indices in chosen.items()}


@given(texts=st.lists(WRITTEN, min_size=2, max_size=4), data=st.data())
@settings(max_examples=6)
def test_counts_of_documents_add_up_and_follow_a_permutation_of_the_experts(olmoe, texts, data):
    model, tokenizer = olmoe
    whole, cut = counts(model, tokenizer, texts), data.draw(st.integers(1, len(texts) - 1))
    parts = counts(model, tokenizer, texts[:cut]), counts(model, tokenizer, texts[cut:])
    assert all(torch.equal(whole[layer], parts[0][layer] + parts[1][layer]) for layer in whole)
    order = torch.tensor(data.draw(st.permutations(range(routing.number_of_experts(model)))))
    other = copy.deepcopy(model)
    for layer, router in routing.routers(other).items():
        for module in (router, experts.experts_modules(other)[layer]):
            for parameter in module.parameters():  # each has the experts first
                parameter.data = parameter.data[order]
    permuted = counts(other, tokenizer, texts)
    assert all(torch.equal(permuted[layer], whole[layer][order]) for layer in whole)


def test_a_tokenizer_that_writes_the_start_itself_does_not_get_a_second_one(olmoe):
    model, tokenizer = olmoe

    class Writes:
        bos_token_id = eos_token_id = tokenizer.eos_token_id

        def __call__(self, texts):
            return {"input_ids": [[self.bos_token_id, *row] for row in tokenizer(texts)["input_ids"]]}

    assert torch.equal(routing.route(model, Writes(), TEXTS).tokens, routing.route(model, tokenizer, TEXTS).tokens)


# ---- routers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TINY_MOE)
def test_the_router_beside_the_experts_decides_what_they_get(name):
    model, tokenizer = models.load(name, dtype=torch.float32, device="cpu")
    seen, hooks = {}, []
    for layer, router in routing.routers(model).items():
        hooks.append(router.register_forward_pre_hook(lambda m, a, n=layer: seen.__setitem__(n, a[0] @ m.weight.T)))
    routed = routing.route(model, tokenizer, TEXTS[:1])
    for hook in hooks:
        hook.remove()
    assert list(seen) == list(routed.indices) == list(experts.experts_modules(model))
    for layer, logits in seen.items():  # these families have no selection bias
        indices = routed.indices[layer][0]
        chosen = logits.reshape(-1, logits.shape[-1])[1:].topk(indices.shape[1]).indices
        assert torch.equal(chosen.sort().values, indices.sort().values)
    assert routing.number_of_experts(model) == next(iter(seen.values())).shape[-1]


def test_a_push_raises_the_logit_by_what_it_says_and_ends_with_the_with(olmoe):
    model, tokenizer = olmoe
    router, logits = routing.routers(model)[0], []
    hook = router.register_forward_hook(lambda module, args, output: logits.append(output[0]))
    with torch.inference_mode(), pytest.raises(KeyboardInterrupt):
        routing.route(model, tokenizer, TEXTS[:1])
        with routing.push(model, expert=5, by=0.7):
            routing.route(model, tokenizer, TEXTS[:1])
            raise KeyboardInterrupt
    routing.route(model, tokenizer, TEXTS[:1])
    hook.remove()
    before, inside, after = logits
    torch.testing.assert_close((inside - before)[:, 5], torch.full((len(before),), 0.7), rtol=0, atol=1e-4)
    assert torch.equal(before, after)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_a_strong_push_sends_every_token_to_the_expert_in_every_layer(olmoe):
    with routing.push(olmoe[0], expert=3, by=100.0):
        routed = routing.route(*olmoe, TEXTS)
    for indices in routed.indices.values():
        assert (indices[..., 0][routed.tokens >= 0] == 3).all()


def test_a_dense_model_has_no_routers():
    model, _ = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
    with pytest.raises(BadInput, match="dense"):
        routing.routers(model)


def test_every_family_of_the_course_has_routers_of_the_same_form():
    from transformers import AutoConfig, AutoModelForCausalLM

    for fields in (SMALL["olmoe"], SMALL["deepseek-moe"], SMALL["jamba"], MIXTRAL):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**fields, vocab_size=64, pad_token_id=0))
        E = routing.number_of_experts(model)
        assert all(router.weight.shape == (E, 32) for router in routing.routers(model).values())


# ---- many layers -----------------------------------------------------------------------------------------------------


def test_holm_equals_its_definition():
    """Holm 1979: the hypotheses by their p, the smallest times m, the next times m - 1, never below the one before."""
    p = [0.01, 0.04, 0.03, 0.005]
    assert significance.holm(torch.tensor(p)).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        p = torch.rand(6, generator=generator).double() ** 3
        ordered = sorted(range(6), key=lambda i: float(p[i]))
        running = itertools.accumulate((min(1.0, float(p[i]) * (6 - r)) for r, i in enumerate(ordered)), max)
        expected = dict(zip(ordered, running, strict=True))
        assert significance.holm(p).tolist() == pytest.approx([expected[i] for i in range(6)])


def test_holm_keeps_the_level_over_many_layers():
    p = torch.rand(4000, 16, generator=torch.Generator().manual_seed(1)).double()
    any_false = sum(bool((significance.holm(row) < 0.05).any()) for row in p) / len(p)
    assert any_false < 0.05 + 3 * (0.05 * 0.95 / len(p)) ** 0.5
    assert (p < 0.05).any(1).double().mean() > 0.5  # without it most runs have a false positive


@pytest.mark.slow
@pytest.mark.parametrize("permutations", [99, 999])
def test_errors_by_chance_hold_for_any_seed_and_are_not_too_wide(permutations):
    """Many runs of a test without an effect, each with a null of its own: the counts lie between the limits."""
    low, high = significance.errors_by_chance(200, permutations, share=0.99)
    generator = torch.Generator().manual_seed(0)
    nulls = torch.randn(permutations, 2000, generator=generator)
    p = significance.p_values(nulls, torch.randn(200, 2000, generator=generator))
    false = (p <= significance.LEVEL).sum(0)
    assert false.double().mean() == pytest.approx(200 * significance.LEVEL, rel=0.05)
    inside = ((false >= low) & (false <= high)).double().mean()
    narrower = ((false > low + 1) & (false < high - 1)).double().mean()
    assert inside > 0.985 > narrower
    assert significance.errors_by_chance(200, permutations)[1] > high


def test_p_of_many_values_is_that_of_each_alone():
    null, values = torch.tensor([[0.1], [0.5], [0.9]]), torch.tensor([[1.0], [0.5], [0.0]])
    assert significance.p_values(null, values).tolist() == [[0.25], [0.75], [1.0]]


# ---- last, because it takes the models above away ------------------------------------------------------------------


@pytest.mark.slow
def test_a_reader_goes_on_after_the_model_was_given_back():
    """After Run All Cells a student scrolls up and types: the lab's last cell has freed the model."""
    loads = []

    def load():
        loads.append("load")
        return models.load("tiny/olmoe", dtype=torch.float32, device="cpu")

    read = routing.reader(*load(), load)
    before = read(TEXTS[0])
    models.unload()
    for _ in range(2):
        again = read(TEXTS[0])
        assert all(torch.equal(again.indices[layer], before.indices[layer]) for layer in before.indices)
    assert len(loads) == 2  # once at the start, once after it was given back
