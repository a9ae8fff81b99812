"""What lab 2.4.4 claims, asserted on the run that `make run` gave, and its formulas against independent sources."""

import importlib
import math
import re

import balance as program
import numpy as np
import pytest
import scipy.stats
import torch
from conftest import numbers, published_bytes, rows_of
from transformers import AutoConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from shared import data, models, notebooks
from shared.kits import moe, routing
from shared.models.sizes import published_config

pytestmark = pytest.mark.slow

LAB = "2.4.4"
ANSWERS = notebooks.solution(LAB)
RUN = pytest.mark.usefixtures("made")


# ---- formulas ------------------------------------------------------------------------------------------------------


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_four_numbers_agree_with_scipy():
    counts = torch.tensor([310, 45, 0, 120, 7, 95, 1, 222])
    violation, variation, entropy, dead = ANSWERS.imbalance(counts)
    assert violation == pytest.approx(310 / 100 - 1)
    assert variation == pytest.approx(scipy.stats.variation(counts.numpy()))
    assert entropy == pytest.approx(scipy.stats.entropy(counts.numpy(), base=8))
    assert dead == 2  # 0 and 1; 7 is above 5 % of 100


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_loss_of_one_layer_is_that_of_transformers(k):
    logits, real = normal(60, 8), torch.rand(60, generator=torch.Generator().manual_seed(1)) > 0.3
    yours, theirs = ANSWERS.balancing_loss([logits], k), load_balancing_loss_func((logits,), 8, k)
    assert yours.item() == pytest.approx(theirs.item(), rel=1e-5)
    masked = load_balancing_loss_func((logits,), 8, k, attention_mask=real.long()[None])
    assert ANSWERS.balancing_loss([logits], k, real).item() == pytest.approx(masked.item(), rel=1e-5)


def test_the_loss_and_its_gradient_are_those_of_the_formula():
    logits = normal(40, 4).requires_grad_()
    (slope,) = torch.autograd.grad(ANSWERS.balancing_loss([logits], 1), logits)
    p = logits.detach().softmax(-1)
    f = torch.tensor(np.bincount(p.argmax(1), minlength=4) / 40)
    expected = 4 / 40 * p * (f - (f * p).sum(1, keepdim=True))
    torch.testing.assert_close(slope, expected.float())


def test_three_tokens_by_hand():
    """Probabilities (3/4, 1/4), (3/4, 1/4), (1/4, 3/4): f = (2/3, 1/3), P = (7/12, 5/12), 2 f P = 19/18."""
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, math.log(3)]])
    assert ANSWERS.balancing_loss([logits], 1).item() == pytest.approx(19 / 18)


def prose(cell_id: str) -> str:
    """The text of a markdown cell, with its minus signs as those of numbers."""
    return next(cell.source for cell in notebooks.read(LAB).cells if cell.id == cell_id).replace("−", "-")


def test_the_examples_by_hand_are_right():
    """Numbers of the worked examples that stand before exercises, beside what the answers give for them."""
    logits = torch.tensor([[2.0, 1.0, 0.0]])
    assert [f"{p:.2f}" for p in logits.softmax(-1)[0]] == ["0.67", "0.24", "0.09"]
    assert "0.67, 0.24, 0.09" in prose("h-softmax-router")
    assert [f"{w:.2f}" for w in ANSWERS.topk_router(logits, 2)[1][0]] == ["0.73", "0.27"]
    assert "0.73 and 0.27" in prose("h-topk-router")
    chosen, weights = ANSWERS.biased_router(logits, 2, torch.tensor([0.0, -0.5, 0.0]))
    assert chosen[0].tolist() == [0, 2] and [f"{w:.2f}" for w in weights[0]] == ["0.64", "0.36"]
    assert "bias 0, -0.5, 0 chooses experts 0 and 2, with weights 0.64 and 0.36" in prose("h-biased-router")
    violation, variation, entropy, dead = ANSWERS.imbalance(torch.tensor([6, 1, 1, 0]))
    example = prose("imbalance-example")
    assert violation == 2 and "MaxVio is 2." in example and dead == 1 and "One expert is dead." in example
    assert f"variation is {variation:.2f}" in example and f"log 4 is {entropy:.2f}" in example
    assert "L = 2 \\, (14/36 + 5/36) = 19/18" in prose("loss-example")  # test_three_tokens_by_hand
    assert ANSWERS.bias_step(torch.zeros(3), torch.tensor([1, 5, 3]), 0.1).tolist() == pytest.approx([0.1, -0.1, 0])
    assert "0.1, -0.1, 0" in prose("h-bias")


def test_with_one_expert_the_second_kind_has_no_gradient():
    logits = normal(20, 8).requires_grad_()
    weights = ANSWERS.topk_router(logits, 1)[1]
    (slope,) = torch.autograd.grad(weights.sum(), logits)
    assert (weights == 1).all() and (slope == 0).all()


def test_deepseek_moe_keeps_the_raw_probabilities_and_mixtral_is_of_another_type():
    assert published_config("deepseek-moe-16b").norm_topk_prob is False
    assert published_config("olmoe-1b-7b").norm_topk_prob is False
    assert published_config("mixtral-8x7b").model_type == "mixtral"


LATER_FAMILIES = {
    "glm4_moe": "Glm4MoeTopkRouter",
    "kimi_linear": "KimiLinearTopkRouter",
    "minimax_m2": "MiniMaxM2TopKRouter",
    "nemotron_h": "NemotronHTopkRouter",
    "lfm2_moe": "Lfm2MoeTopKRouter",
}


@pytest.mark.parametrize("family", LATER_FAMILIES)
@torch.no_grad()
def test_later_families_are_of_the_third_kind(family):
    """The library's router of each family that the last section names, without groups, scaled to sum to 1."""
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    config = AutoConfig.for_model(family, hidden_size=32, num_experts_per_tok=2, n_group=1, topk_group=1)
    config.num_experts = config.num_local_experts = 8
    config.routed_scaling_factor, config.norm_topk_prob, config.use_expert_bias = 1.0, True, True
    router = getattr(module, LATER_FAMILIES[family])(config)
    router.weight.copy_(normal(8, 32) / 4)
    hidden, bias = normal(200, 32, seed=1), 0.2 * normal(8, seed=2)
    if hasattr(router, "e_score_correction_bias"):
        router.e_score_correction_bias.copy_(bias)
        logits, weights, chosen = router(hidden)
    else:  # the layer hands it in
        logits, weights, chosen = router(hidden, bias)
    yours, your_weights = ANSWERS.biased_router(logits, 2, bias)
    dense = torch.zeros_like(logits)
    torch.testing.assert_close(dense.scatter(1, yours, your_weights), dense.scatter(1, chosen, weights))


def test_the_library_trains_with_the_pooled_loss_and_only_when_it_is_asked_to():
    model, _ = models.load("tiny/olmoe", dtype=torch.float32, device="cpu")
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert model(ids, labels=ids).aux_loss is None
        came = model(ids, labels=ids, output_router_logits=True)
    pooled = load_balancing_loss_func(came.router_logits, model.config.num_experts, model.config.num_experts_per_tok)
    assert came.aux_loss.item() == pytest.approx(pooled.item())


def test_the_targets_of_the_open_challenges_can_be_reached():
    """A step that shrinks is early and calm: below 0.3 by step 20, at most 0.12 in the last 50."""
    generator, bias, violation = torch.Generator().manual_seed(0), torch.zeros(16), []
    for step in range(300):
        logits = torch.randn(2000, 16, generator=generator) + torch.linspace(-1, 1, 16)
        counts = ANSWERS.biased_router(logits, 2, bias)[0].flatten().bincount(minlength=16)
        violation.append(ANSWERS.imbalance(counts)[0])
        bias = ANSWERS.bias_step(bias, counts, max(0.001, 0.01 * 0.97**step))
    assert min(violation[:21]) < 0.3 and np.mean(violation[-50:]) <= 0.12
    # A weight of the loss per layer that is five times the lab's.
    torch.manual_seed(0)
    history = moe.train(moe.SmallMoE(), 200, balance=program.balance("layer", 0.1))
    assert max(ANSWERS.imbalance(counts)[0] for counts in history.counts[-20:].sum(0)) < 0.2
    assert history.loss[-20:].mean() < 3.54


def test_capacity_by_hand():
    experts = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 0]])  # capacity 1 * 4 * 2 / 4 = 2
    expected = [[True, True], [True, False], [False, True], [True, False]]
    assert ANSWERS.within_capacity(experts, 4, 1.0).tolist() == expected


def test_chance_is_binomial():
    """The closed form of the lab is the coefficient of variation of scipy's binomial."""
    for E, k, T in ((16, 2, 1000), (64, 8, 200)):
        count = scipy.stats.binom(T, k / E)
        assert math.sqrt((E - k) / (T * k)) == pytest.approx(count.std() / count.mean())


def test_the_controller_moves_by_u_and_towards_balance():
    bias = ANSWERS.bias_step(torch.zeros(3), torch.tensor([1, 5, 3]), 0.25)
    assert bias.tolist() == [0.25, -0.25, 0.0]


# ---- the run -------------------------------------------------------------------------------------------------------


@RUN
def test_one_model_is_even_and_the_other_has_dead_experts(said):
    even, collapsed = (numbers(line.split("busiest")[1]) for line in said["first-figure-numbers"].splitlines())
    assert even[0] < 1.5 and even[1] == 0
    assert collapsed[0] > 4 and collapsed[1] > collapsed[2] / 4


@RUN
def test_most_rows_of_the_balanced_model_are_nearly_orthogonal_and_a_group_is_close_to_parallel(said):
    first = rows_of(said["weight-table"].split("collapsed")[0])["layer 0"]
    assert abs(first[2]) < 0.1 and first[3] > 0.9  # the mean cosine, and the largest
    model, _ = models.load("tiny/olmoe", dtype=torch.float32, device="cpu")
    rows = torch.nn.functional.normalize(routing.routers(model)[0].weight.detach())
    cosines = (rows @ rows.T)[~torch.eye(16, dtype=bool)].abs()
    assert (cosines < 0.3).double().mean() > 0.7


@RUN
def test_the_load_of_the_collapsed_model_goes_with_the_length_of_the_rows(said):
    together = [values[-1] for values in rows_of(said["weight-table"].split("collapsed")[1]).values()]
    assert len(together) == 4 and min(together) > 0.6
    *_, used, unused = (numbers(line)[-1] for line in said["unused-rows"].splitlines())
    assert unused > used + 0.4


@RUN
def test_each_family_is_one_kind_of_router(said):
    lines = [line.split() for line in said["families-match"].splitlines()[1:]]
    assert {name: found.index("True") for name, *found in lines} == {
        "OLMoE": 0,
        "Mixtral": 1,
        "gpt-oss": 1,
        "DeepSeek-V3": 2,
    }
    assert all(found.count("True") == 1 for _, *found in lines)
    assert numbers(said["bias-changes-the-choice"])[-1] < 80


@RUN
def test_chance_follows_the_formula(said):
    for _, _, drawn, formula in map(numbers, said["chance-level"].splitlines()):
        assert drawn == pytest.approx(formula, rel=0.1)


@RUN
def test_the_balanced_model_is_above_chance_and_code_alone_is_uneven(said):
    found = [numbers(line)[-4:] for line in said["balance-table"].splitlines()[1:]]
    short, long, short_collapsed, long_collapsed = (found[i : i + 5] for i in (0, 5, 10, 15))
    for part in (short, long, short_collapsed, long_collapsed):
        *layers, chance = part
        assert min(layer[0] for layer in layers) > chance[0]
    assert sum(layer[0] > 1.5 for layer in short[:4]) == 2 and max(layer[0] for layer in long[:4]) < 0.5
    domain, text = next(iter(data.tiny_text("heldout").items()))
    read = 10 * 256  # the first four of every third window
    assert domain == "code" and len(models.tiny_tokenizer()(text)["input_ids"]) > read  # "are all code"
    assert min(layer[3] for layer in long_collapsed[:4]) >= 2
    assert long_collapsed[3][3] > 16 / 2  # of the last layer, "most buffers stand nearly empty"


@RUN
def test_chance_falls_like_one_over_a_root_and_every_layer_falls_more_slowly(said):
    rows = rows_of(said["over-tokens"].split("\n", 1)[1])
    fallen = {name: values[0] / values[-1] for name, values in rows.items()}
    tokens = numbers(said["over-tokens"].splitlines()[0])
    assert fallen["chance"] == pytest.approx(math.sqrt(tokens[-1] / tokens[0]), rel=0.3)
    assert len(rows) == 5 and max(ratio for name, ratio in fallen.items() if name != "chance") < fallen["chance"] / 2
    assert min(values[-1] for name, values in rows.items() if name != "chance") > 3 * rows["chance"][-1]


@RUN
def test_the_question_about_chance_has_the_number_of_the_table(said):
    chance = numbers(next(line for line in said["balance-table"].splitlines() if "chance" in line))[0]
    assert f"MaxVio is {chance:.2f} on 1,024 tokens" in prose("questions")


@RUN
def test_the_loss_has_the_values_that_the_text_names(said):
    even, full = said["loss-range"].splitlines()
    assert numbers(even)[0] == 2 and numbers(full)[-1] == 16
    assert said["loss-as-library"].strip().endswith("True")
    per_layer, pooled = re.findall(r": ([\d.]+)", said["pooled-caught"].splitlines()[1])
    assert float(per_layer) == pytest.approx(4, abs=0.01) and float(pooled) == pytest.approx(2, abs=0.01)
    assert numbers(said["below-the-minimum"])[-1] == 0.92
    counted, squared = (numbers(line)[-1] for line in said["what-has-the-gradient"].splitlines())
    assert counted > 0.5 and squared < 0.001
    (_, z, loss), (_, shifted, same) = map(numbers, said["z-loss-numbers"].splitlines())
    assert shifted > 10 * z and same == loss


@RUN
def test_a_balanced_layer_needs_a_quarter_of_room_and_a_collapsed_one_more_than_four(said):
    rows = rows_of(said["dropped"])
    balanced, collapsed = (next(v for name, v in rows.items() if kind in name) for kind in ("balanced", "collapsed"))
    balanced, collapsed = balanced[-8:], collapsed[-8:]  # factors 0.5 to 4
    assert balanced[2] > 0.05 and balanced[3] < 0.02 and balanced[4] == 0
    assert 0.6 < collapsed[2] < 0.75 and 0.05 < collapsed[7] < 0.15 and collapsed[4] > 0.5


@RUN
def test_the_controller_has_a_range_that_works(said):
    lines = said["controller-sweep"].splitlines()
    last = {numbers(line)[0]: numbers(line)[-1] for line in lines[:-1]}
    chance = numbers(lines[-1])[0]
    assert "never" in lines[0] and "never" in lines[4]
    assert last[0.0001] > 1 and last[0.1] > 0.5 and max(last[0.001], last[0.003]) < 1.5 * chance


@RUN
def test_from_the_same_start_only_the_unbalanced_run_collapses(said):
    found, starts = {}, []
    for way, start, rest in re.findall(r"(\w+): first step, MaxVio of layer 1 ([\d.]+)\n(.+)", said["signature-runs"]):
        starts.append(float(start))
        _, loss, *_, second, _, dead = numbers(rest)
        found[way] = {"loss": loss, "violation": second, "dead": dead}
    assert len(set(starts)) == 1 and starts[0] < 1  # "All start alike"
    assert found["none"]["violation"] > 3 and found["none"]["dead"] >= 3
    for way in ("layer", "bias"):
        assert found[way]["violation"] < 1 and found[way]["dead"] == 0
        assert abs(found[way]["loss"] - found["none"]["loss"]) < 0.05  # one loss, three loads


@RUN
def test_the_second_layer_collapses_within_forty_steps_and_the_bias_undoes_it(said):
    steps, *lines = said["signature-course"].splitlines()[1:]
    course = {line.split()[0]: dict(zip(numbers(steps), numbers(line), strict=True)) for line in lines}
    most = 16 / 2 / 2 - 1  # MaxVio where one of 16 experts has half of the tokens, of which each chooses two
    assert course["none"][40] > most and min(list(course["none"].values())[1:]) > most
    assert max(course["layer"].values()) < 2
    assert max(course["bias"].values()) > most and course["bias"][160] < 0.5


@RUN
def test_without_balancing_two_experts_take_most_of_the_choices(said):
    found = re.findall(r"(none|layer|bias): the two busiest experts take (\d+)%", said["two-busiest"])
    shares = {way: int(share) for way, share in found}
    assert shares["none"] > 50 and max(shares["layer"], shares["bias"]) < 30


@RUN
def test_the_table_shows_the_longer_runs_with_their_origin(said):
    rows = rows_of(said["longer-table"])
    assert set(program.VARIANTS) <= set(rows)
    assert len(program.VARIANTS) == 7 and "in seven ways" in prose("title")
    assert rows["sequence"][5] < rows["layer"][5] / 2 and "torch" in said["longer-table"]


@RUN
def test_the_hook_hands_over_what_the_model_decides_itself(said):
    assert said["own-router"].strip().endswith("True")


@RUN
def test_quality_is_best_near_the_k_of_training(said):
    by_k = {int(n[0]): n[1:3] for n in map(numbers, said["top-k-sweep"].splitlines())}
    size = models.size("tiny/olmoe")
    assert by_k[2][0] == size.active and by_k[16][0] == size.total
    best = min(by_k, key=lambda k: by_k[k][1])
    assert best in (2, 3) and by_k[1][1] > by_k[2][1] + 0.03 and by_k[16][1] > by_k[2][1] + 0.05
    assert by_k[1][1] - by_k[2][1] > 5 * (by_k[2][1] - by_k[best][1])  # "costs more than any number more gains"
    assert by_k[8][1] > by_k[2][1] + 0.02


@RUN
def test_small_jitter_costs_nothing_and_random_experts_cost_a_lot(said):
    at = dict(numbers(line) for line in said["jitter-sweep"].splitlines())
    assert at[0.3] < at[0.0] * 1.02 < at[1.0]
    assert numbers(said["experts-at-random"])[0] > 2 * at[0.0]


def test_the_download_that_the_header_names_is_that_of_the_published_files():
    header = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "needs")
    assert f"{published_bytes('olmoe-1b-7b') / 1e9:.1f} GB with `WEIGHTS" in header


@RUN
def test_no_number_is_missing(said):
    for cell, text in said.items():
        assert not re.search(r"\bnan\b|\binf\b", text), cell
    assert np.isfinite(numbers(said["longer-table"])).all()
