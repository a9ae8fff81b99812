"""The small mixture routes as the library's do, trains the same twice, and the shipped runs say what lab 2.4.4 says."""

import json
import statistics

import balance as program
import pytest
import torch
import torch.nn.functional as F
from transformers import MixtralConfig, OlmoeConfig
from transformers.models.mixtral.modeling_mixtral import MixtralTopKRouter
from transformers.models.olmoe.modeling_olmoe import OlmoeTopKRouter

from shared import experts, notebooks
from shared.kits import moe

SHIPPED = json.loads(program.OUT.read_text())
RUNS = SHIPPED["runs"]
ANSWERS = notebooks.solution("2.4.4")
SIZE = {"hidden_size": 64, "num_experts_per_tok": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


def built(seed=0, **shape) -> moe.SmallMoE:
    torch.manual_seed(seed)
    return moe.SmallMoE(**shape)


# ---- the model -----------------------------------------------------------------------------------------------------


def test_the_experts_compute_what_a_loop_over_tokens_computes():
    layer = built().mixtures[0].experts
    hidden, weights = torch.randn(40, 64), torch.rand(40, 2)
    chosen = torch.rand(40, 16).topk(2).indices
    expected = torch.zeros_like(hidden)
    for t, k in ((t, k) for t in range(40) for k in range(2)):
        gate, up = (hidden[t] @ layer.gate_up[chosen[t, k]]).chunk(2)
        expected[t] += weights[t, k] * ((F.silu(gate) * up) @ layer.down[chosen[t, k]])
    torch.testing.assert_close(layer(hidden, chosen, weights), expected)


@pytest.mark.parametrize(
    ("renormalise", "router"),
    [
        (False, OlmoeTopKRouter(OlmoeConfig(**SIZE, num_experts=16))),
        (True, MixtralTopKRouter(MixtralConfig(**SIZE, num_local_experts=16))),
    ],
    ids=["as OLMoE", "as Mixtral"],
)
def test_it_routes_as_the_library_does(renormalise, router):
    mixture, given = built(renormalise=renormalise).mixtures[0], []
    router.weight.data = mixture.router.weight.data
    mixture.experts.register_forward_pre_hook(lambda module, args: given.extend(args))
    x = torch.randn(2, 30, 64)
    mixture(x)
    _, weights, indices = router(x)
    assert torch.equal(given[1].sort().values, indices.sort().values)
    torch.testing.assert_close(given[2].sort().values, weights.sort().values)


def test_the_bias_moves_the_choice_and_not_the_weights():
    mixture, given = built(renormalise=False).mixtures[0], []
    mixture.experts.register_forward_pre_hook(lambda module, args: given.append(args))
    x = torch.randn(2, 30, 64)
    mixture(x)
    mixture.bias[3] = 10.0
    mixture(x)
    assert (mixture.chosen == 3).any(-1).all() and not torch.equal(given[0][1], given[1][1])
    probabilities = mixture.logits.softmax(-1).flatten(0, 1)
    torch.testing.assert_close(given[1][2], probabilities.gather(1, given[1][1]))


@pytest.mark.slow
def test_capture_sees_the_choices_of_the_small_model_too():
    model, ids = built(), next(moe.batches(1, seed=0))[:, :-1]
    with experts.capture(model) as trace:
        model(ids)
    for layer, mixture in enumerate(model.mixtures):
        assert torch.equal(trace.indices[layer].sort().values, mixture.chosen.sort().values)


def test_a_token_is_predicted_from_what_stands_before_it():
    model, ids = built().eval(), next(moe.batches(1, seed=0))[:2, :-1]
    changed = ids.clone()
    changed[:, 60] = (changed[:, 60] + 1) % moe.VOCABULARY
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :60], after[:, :60]) and not torch.allclose(before[:, 60:], after[:, 60:])


def test_attention_adds_next_to_nothing_to_a_token_of_a_fresh_model():
    model, norms = built(), {}
    block = model.blocks[0]
    block.register_forward_pre_hook(lambda _, given: norms.update(token=given[0].norm(dim=-1)))
    block.out.register_forward_hook(lambda _, given, added: norms.update(added=added.norm(dim=-1)))
    model(next(moe.batches(1, seed=0))[:, :-1])
    assert norms["added"].mean() < 0.01 * norms["token"].mean()


# ---- text and training ---------------------------------------------------------------------------------------------


def test_a_row_is_from_one_domain_and_the_same_seed_gives_the_same_rows():
    first, again, other = (next(moe.batches(1, seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other) and first.shape == (8, 129)
    texts = [text.unfold(0, 129, 1) for text in moe.tokens("train").values()]
    for row in first:
        assert any((text == row).all(1).any() for text in texts)


def test_training_is_the_same_twice_and_counts_every_choice():
    runs = [moe.train(built(), 6) for _ in range(2)]
    assert torch.equal(runs[0].loss, runs[1].loss) and torch.equal(runs[0].counts, runs[1].counts)
    assert runs[0].counts.shape == (6, 2, 16) and (runs[0].counts.sum(-1) == 8 * 128 * 2).all()
    assert runs[0].loss[0] > runs[0].loss[-1]


def test_the_balance_enters_the_loss_and_the_controller_moves_the_bias():
    alone, balanced, controlled = built(), built(), built()
    moe.train(alone, 3)
    moe.train(balanced, 3, balance=lambda layers: ANSWERS.balancing_loss([x.flatten(0, 1) for x in layers], 2))
    moe.train(controlled, 3, controller=lambda bias, counts: bias + 0.5)
    assert not torch.equal(alone.mixtures[0].router.weight, balanced.mixtures[0].router.weight)
    assert all((mixture.bias == 1.5).all() for mixture in controlled.mixtures)
    assert all((mixture.bias == 0).all() for mixture in alone.mixtures)


@pytest.mark.slow
def test_the_second_layer_collapses_within_forty_steps_and_the_loss_per_layer_prevents_it():
    ends = {}
    for name, loss in (("none", None), ("layer", program.balance("layer", 0.02))):
        history = moe.train(built(), 40, balance=loss)
        ends[name] = ANSWERS.imbalance(history.counts[-5:, 1].sum(0))
    assert ends["none"][0] > 3 > 2 > ends["layer"][0]
    assert ends["none"][3] >= 2


@pytest.mark.slow
def test_evaluation_scores_every_window_and_counts_by_domain():
    model = built()
    loss, counts = moe.evaluate(model)
    windows = [(len(ids) - 1) // 128 for ids in moe.tokens("heldout").values()]
    assert counts.shape == (7, 2, 16)
    assert counts.sum(-1).tolist() == [[n * 128 * 2] * 2 for n in windows]
    assert 6 < loss < 8, "an untrained model is near the logarithm of the vocabulary"


# ---- what is shipped -----------------------------------------------------------------------------------------------


def final(variant: str, what: str, layer: int | None = None) -> list[float]:
    """The value of each seed at the end of a variant's runs."""
    values = [run["final"][what] for run in RUNS[variant].values()]
    return values if layer is None else [value[layer] for value in values]


def test_the_runs_were_made_with_the_settings_of_the_program():
    assert SHIPPED["settings"] == json.loads(json.dumps(program.SETTINGS | {"seeds": program.SEEDS}))
    assert SHIPPED["made"]["command"] == "make balance" and SHIPPED["made"].keys() >= {"machine", "torch", "date"}
    assert tuple(RUNS) == program.VARIANTS
    for runs in RUNS.values():
        assert runs.keys() == set(map(str, program.SEEDS))
        for run in runs.values():
            assert len(run["steps"]) == len(run["loss"]) == len(run["dead"][0]) == len(run["max_violation"][1])


def test_without_balancing_experts_die_on_every_seed_and_with_it_none_do():
    assert min(final("none", "dead", 1)) >= 4 and len(set(final("none", "dead", 1))) > 1  # differs from seed to seed
    for variant in ("layer", "sequence", "bias"):
        assert final(variant, "dead", 0) == final(variant, "dead", 1) == [0, 0, 0], variant


def test_where_the_router_does_not_learn_nobody_dies():
    assert final("frozen", "dead", 0) == final("frozen", "dead", 1) == [0, 0, 0]
    assert max(final("frozen", "max_violation", 1)) < min(final("none", "max_violation", 1))


def test_one_expert_per_token_is_no_remedy():
    assert min(final("top-1", "max_violation", 1)) > 2


def test_the_pooled_loss_lies_between_none_and_per_layer():
    for seed in program.SEEDS:
        none, pooled, layer = (final(v, "max_violation", 1)[seed] for v in ("none", "pooled", "layer"))
        assert layer < pooled < none


def test_balancing_per_sequence_takes_most_of_the_specialisation_away_on_every_seed():
    for layer in (0, 1):
        for other in ("layer", "bias"):
            assert max(final("sequence", "mutual_information", layer)) < min(final(other, "mutual_information", layer))
    of_sequence, of_layer = (final(variant, "mutual_information", 1) for variant in ("sequence", "layer"))
    for less, more in zip(of_sequence, of_layer, strict=True):  # "of the second layer"
        assert less < more / 2
    others = [value for variant in program.VARIANTS for value in final(variant, "mutual_information", 1)]
    assert max(of_sequence) < min(value for value in others if value not in of_sequence)
    uneven = [statistics.mean(final(variant, "max_violation", 1)) for variant in ("sequence", "layer")]
    assert uneven[0] == pytest.approx(uneven[1], rel=0.2)  # "about as even"


def test_top_1_alone_is_worse_than_all_others_on_every_seed():
    others = [value for v in program.VARIANTS if v != "top-1" for value in final(v, "bits_per_byte")]
    assert min(final("top-1", "bits_per_byte")) > max(others)


def test_one_expert_per_token_is_as_uneven_and_no_balancing_costs_about_a_percent_on_every_seed():
    uneven = [statistics.mean(final(variant, "max_violation", 1)) for variant in ("top-1", "none")]
    assert uneven[0] > 0.9 * uneven[1]
    none = final("none", "bits_per_byte")
    for variant in ("layer", "bias"):
        for without, balanced in zip(none, final(variant, "bits_per_byte"), strict=True):
            assert 1.005 < without / balanced < 1.015


def test_no_way_of_balancing_is_better_than_another_by_more_than_the_seeds():
    balanced = [final(variant, "bits_per_byte") for variant in ("pooled", "layer", "sequence", "bias")]
    spread = max(max(values) - min(values) for values in balanced)
    means = [statistics.mean(values) for values in balanced]
    assert max(means) - min(means) < spread
