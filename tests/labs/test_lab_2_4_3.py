"""What lab 2.4.3 claims, asserted on the run that `make run` gave; and its formulas against independent sources."""

import ast
import itertools
import json
import math
import re
import statistics

import nbformat
import numpy as np
import pytest
import torch
from conftest import numbers, rows_of
from scipy.stats import binom, chi2_contingency, entropy

from shared import data, files, models, notebooks
from shared.kits import routing, significance
from shared.models.sizes import published_config, shapes

pytestmark = pytest.mark.slow

LAB = "2.4.3"
LAYERS = published_config("tiny/olmoe").num_hidden_layers
LARGE = ("mixtral-8x7b", "deepseek-moe-16b", "olmoe-1b-7b", "jamba-v0.1")
EACH_LARGE = pytest.mark.parametrize("name", LARGE)


@pytest.fixture(scope="module")
def course():
    """The course's own version of every exercise."""
    return notebooks.solution(LAB)


def by_layer(text: str) -> dict[int, list[float]]:
    """A printed table whose rows begin with a layer's number: layer -> the numbers after it."""
    return {int(name): row for name, row in rows_of(text).items() if name.isdigit()}


def after(text: str, start: str) -> list[float]:
    """The numbers behind `start` in the one line that has it."""
    (line,) = [line for line in text.splitlines() if start in line]
    return numbers(line.split(start)[1])


# ---- sizes ---------------------------------------------------------------------------------------------------------


@EACH_LARGE
def test_a_mixture_computes_with_a_sixth_to_a_quarter_of_what_it_stores(said, name):
    total, active, share, _ = after(said["first-figure-numbers"], f"{name}: ")
    size = models.size(name)
    assert total == pytest.approx(size.total / 1e9, abs=0.01) and active == pytest.approx(size.active / 1e9, abs=0.01)
    assert 100 / 6 < share < 28
    assert 100 / 6 < min(_at_work(said)) <= share <= max(_at_work(said)) < 28  # "a sixth to a good quarter"


def _at_work(said) -> list[float]:
    """The smallest and the largest share at work that the lab prints, in percent."""
    return after(said["first-figure-range"], "of all weights of these mixtures:")


@pytest.mark.parametrize("name", [f"{kind}-{size}" for kind in ("pythia", "mamba") for size in ("1.4b", "2.8b")])
def test_a_dense_model_uses_what_it_stores(name):
    assert models.size(name).active == models.size(name).total


def test_every_part_is_counted_exactly(course, said):
    assert said["parts-exact"].strip().endswith("True")
    rows = {line[:14].strip(): numbers(line[14:]) for line in said["parts-table"].splitlines() if "," in line}
    mixtral = 32 * 8 * 3 * 4096 * 14336  # layers, experts, matrices, widths: by hand
    idle = {name: 1 - models.size(name).active / models.size(name).total for name in (*LARGE, *models.TINY[2:])}
    assert max(idle[name] for name in models.TINY[2:]) < min(idle[name] for name in LARGE)  # "so less is idle"
    assert f"{mixtral:,}" in said["parts-table"] and f"{mixtral // 4:,}" in said["parts-table"]
    assert {"embedding", "attention", "router", "routed", "routed, active", "all", "all, active"} <= set(rows)
    weigh = np.add(rows["embedding"], rows["attention"]) / rows["all"]
    assert len(weigh) == 4 and min(weigh) > 0.2  # of the tiny ones, whose rows are the later ones
    for name in LARGE:  # "In the tiny ones, embedding and attention weigh more"
        parts = course.parameter_parts(shapes(name), published_config(name).num_experts_per_tok)
        assert (parts["embedding"][0] + parts["attention"][0]) / models.size(name).total < 0.1


@EACH_LARGE
def test_routers_are_thin_and_most_of_the_large_models_waits(course, name):
    parts = course.parameter_parts(shapes(name), published_config(name).num_experts_per_tok)
    total, active = (sum(column) for column in zip(*parts.values(), strict=True))
    assert (total, active) == (models.size(name).total, models.size(name).active)
    assert parts["router"][0] < total / 1000 and 1 - active / total > 0.72


def test_the_numbers_in_the_prose_are_those_of_the_table(said):
    text = "".join(cell.source for cell in notebooks.read(LAB).cells if cell.id == "box-names")
    mixtral, deepseek = models.size("mixtral-8x7b"), models.size("deepseek-moe-16b")
    assert f"counts {mixtral.total / 1e9:.1f}" in text and f"{mixtral.active / 1e9:.0f}B active" in text
    assert f"{deepseek.active / 1e9:.2f} billion of its {deepseek.total / 1e9:.1f}" in text
    idle = {line.split()[0]: numbers(line)[-1] for line in said["parts-share"].splitlines()[1:]}
    assert min(idle[name] for name in LARGE) > 72  # "nearly three quarters and more"


def test_the_examples_by_hand_are_right(course):
    prose = {cell.id: cell.source for cell in notebooks.read(LAB).cells}
    by_hand = course.mutual_information(torch.tensor([[3.0, 1.0], [1.0, 3.0]])).item()
    assert f"= {by_hand:.3f}" in prose["information-by-hand"]
    assert f"(2) = {math.log(2):.3f}" in prose["information-by-hand"]
    counts = torch.tensor([[4.0, 0.0], [3.0, 1.0], [1.0, 3.0], [0.0, 4.0]])
    values = {}
    for ones in itertools.combinations(range(4), 2):
        rest = [i for i in range(4) if i not in ones]
        table = torch.stack([counts[list(ones)].sum(0), counts[rest].sum(0)])
        values[ones] = course.mutual_information(table).item()
    best = [ones for ones, value in values.items() if value >= values[0, 1] - 1e-9]
    assert len(values) == 6 and best == [(0, 1), (2, 3)] and "p is 1/3" in prose["permutation-by-hand"]
    document, chosen = torch.tensor([0, 0, 1, 1]), torch.tensor([[0], [1], [0], [0]])
    expected = course.expected_by_token(torch.zeros(4, dtype=torch.int64), chosen, document, 2)
    assert str(tuple(expected[0].tolist())) in prose["h-expected"]
    assert str(tuple((expected[0] / 2).tolist())) in prose["h-expected"]


def test_the_shared_expert_is_that_of_deepseek(course):
    parts = course.parameter_parts(shapes("deepseek-moe-16b"), 6)
    assert parts["shared"] == (27 * 3 * 2048 * 2 * 1408,) * 2
    assert parts["routed"] == (27 * 64 * 3 * 2048 * 1408, 27 * 6 * 3 * 2048 * 1408)


# ---- what runs -----------------------------------------------------------------------------------------------------


def test_nothing_inside_the_experts_could_be_hooked(said):
    assert said["nothing-to-hook"].splitlines()[0].endswith("{'SiLUActivation'}")


def test_the_student_records_what_capture_does(said):
    assert said["record-agrees"].strip().endswith("True")


def test_there_are_fifty_prompts_of_each_kind_and_they_fit_the_vocabulary(said):
    (first,), sizes = said["prompts"].splitlines(), said["bytes-per-token"].splitlines()
    assert min(ast.literal_eval(first).values()) > 50 and len(ast.literal_eval(first)) == 7
    prompts, own = (numbers(line)[-1] for line in sizes)
    assert prompts == pytest.approx(own, rel=0.05)


def outputs(cell_id: str) -> list:
    path = files.BUILD / "executed" / notebooks.path_of(LAB).name
    return next(cell for cell in nbformat.read(path, as_version=4).cells if cell.id == cell_id).outputs


def test_seven_prompts_are_shown_as_coloured_text(said):
    (output,) = outputs("coloured-text")
    body = output.data["text/html"]
    assert body.count("<p><b>") == 7 and body.count("<span title=") > 7 * 20
    tooltips = re.findall(r'title="([^"]*)"', body)
    assert all(title.count("expert ") == published_config("tiny/olmoe").num_experts_per_tok for title in tooltips)
    assert body.count("<sub") == len(tooltips)
    assert "commonest first expert: code" in said["coloured-text"]
    for text in body.split("<p><b>")[1:]:  # "runs, and a favourite number per text"
        first = re.findall(r"<sub[^>]*>(\d+)</sub>", text)
        assert statistics.multimode(first)[0] in said["coloured-text"]
        assert first.count(statistics.mode(first)) > 1.9 * len(first) / 16
        assert sum(a == b for a, b in itertools.pairwise(first)) > 1.5 * len(first) / 16


def test_the_text_field_is_there_with_a_kernel_and_its_picture_for_pages_without(made):
    (output,) = outputs("text-box")
    assert "application/vnd.jupyter.widget-view+json" in output.data and "<span title=" in output.data["text/html"]


def test_words_decide_less_with_depth(said):
    favourite = [numbers(line)[-2] for line in said["token-to-expert"].splitlines()]
    assert favourite == sorted(favourite, reverse=True) and favourite[0] > 55 and favourite[-1] < 45
    assert all(numbers(line)[-1] < 20 for line in said["token-to-expert"].splitlines())


# ---- is it real? ---------------------------------------------------------------------------------------------------


def test_the_uniform_router_makes_less_pattern_than_any_layer(said):
    rows = [re.search(r": ([\d.]+) \(.*router: ([\d.]+)", line) for line in said["use-numbers"].splitlines()[1:]]
    assert len(rows) == LAYERS
    assert min(float(row[1]) for row in rows) > 2 > 1.3 > max(float(row[2]) for row in rows)


def test_experts_and_domains_go_together_in_every_layer(said):
    rows = by_layer(said["test"])
    assert len(rows) == LAYERS
    beyond = [nats > 3 * high and holm < 0.05 for nats, _, high, _, holm in rows.values()]  # "far outside its null"
    assert all(beyond)
    assert int(numbers(said["test"].splitlines()[-1])[-2]) == sum(beyond)


def test_shuffled_labels_are_significant_as_often_as_the_level_allows(said):
    for cell in ("negative-control", "beyond-words-control"):
        found = numbers(re.search(r": \[(.*)\]", said[cell])[1])
        low, high = numbers(said[cell].split(";")[1])
        assert len(found) == LAYERS and low <= min(found) and max(found) <= high
        assert (low, high) == significance.errors_by_chance(200, 999)
    assert numbers(said["negative-control-holm"])[-1] <= high


def test_the_limits_of_the_negative_control_hold_for_other_seeds(course):
    """Counts of documents that lean to experts, tested against their own shuffles, many times over."""
    rng, counted = np.random.default_rng(4), []
    counts = torch.tensor(rng.poisson(rng.gamma(0.5, 4, (60, 1, 5)))).double()
    labels = torch.arange(60) % 3
    for seed in range(40):
        one, other = (torch.Generator().manual_seed(2 * seed + its) for its in (0, 1))
        null = course.permutation_test(counts, labels, course.mutual_information, 199, one)[1]
        shuffled = course.permutation_test(counts, labels, course.mutual_information, 200, other)[1]
        counted.append(int((significance.p_values(null, shuffled) <= significance.LEVEL).sum()))
    low, high = significance.errors_by_chance(200, 199)
    assert low <= min(counted) and max(counted) <= high
    assert max(counted) > binom.ppf(0.99, 200, 0.05)  # the shared null strays, too: a binomial limit is too narrow
    assert statistics.mean(counted) == pytest.approx(10, abs=4 * 4.5 / math.sqrt(40))


def test_the_null_over_tokens_finds_effects_in_shuffled_labels(said):
    documents, tokens, false = said["token-null"].splitlines()
    assert min(numbers(false.split("by layer")[1])) > 90  # percent, at a level of 5: "nearly every time"
    assert all(d > 1.5 * t for d, t in zip(numbers(documents), numbers(tokens), strict=True))


def test_a_router_that_follows_made_up_domains_is_found_and_one_that_does_not_is_not(said):
    found = {numbers(line)[0]: int(numbers(line)[1]) for line in said["positive-control"].splitlines()}
    assert found[0.0] == 0 and found[1.0] == LAYERS
    assert list(found.values()) == sorted(found.values()) and 0 < found[0.1] < LAYERS  # "missed in some layers"
    real, pushed = by_layer(said["test"]), numbers(said["positive-control"].splitlines()[1].split("[")[1])
    assert pushed[1] < real[1][0] / 2  # "effects much smaller than those of the real labels"


def test_an_untrained_network_passes_too_and_training_adds_to_it_except_in_layer_1(said):
    rows = by_layer(said["untrained"])
    assert all(row[-1] < 0.05 for row in rows.values())
    gain = numbers(said["untrained"].splitlines()[-1])
    assert len(gain) == LAYERS and min(gain[0], *gain[2:]) >= 2 and max(gain) < 5 and gain[1] < 1.3


@pytest.mark.parametrize("seed", [3, 4])
def test_untrained_networks_of_other_seeds_say_the_same(course, routed, seed):
    """With the prompts as they are and without their signposts."""
    from transformers import AutoModelForCausalLM

    trained, tokenizer = models.load("tiny/olmoe", dtype=torch.float32, device="cpu")
    torch.manual_seed(seed)
    fresh = AutoModelForCausalLM.from_config(trained.config).float()
    texts = [text for some in data.EXPERT_PROMPTS.values() for text in some]
    scope = {"re": re, "texts": texts, "one_each": [0]}
    exec(next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "signposts"), scope)
    member = torch.eye(7).double()[routed["prompts"][1]]
    for documents in (texts, scope["bare"]):
        of_both = []
        for model in (trained, fresh):
            counts = course.document_counts(routing.route(model, tokenizer, documents).indices, 16).double()
            of_both.append(course.mutual_information(torch.einsum("nd,nle->lde", member, counts)))
        gain = (of_both[0] / of_both[1]).tolist()
        assert min(gain[0], *gain[2:]) > 1.7 and max(gain) < 5.2 and gain[1] < 1.3


# ---- words or topics? ----------------------------------------------------------------------------------------------


def test_an_expert_says_more_about_the_token_than_about_the_domain(said):
    gains = after(said["token-information"], "over domain:")
    assert 1.4 < gains[-1] < 2.5 and min(gains) > 1.4 and min(gains[:2]) > 10


def test_with_the_word_held_fixed_most_of_the_domain_remains(said):
    with_words, fixed = by_layer(said["test"]), by_layer(said["beyond-words-test"])
    shares = [fixed[n][0] / with_words[n][0] for n in fixed]
    assert min(shares) > 0.5 and max(shares) < 0.9
    assert len(fixed) == LAYERS and all(row[-1] < 0.05 for row in fixed.values())
    nats = [row[0] for row in with_words.values()]
    assert sum(nats[-2:]) > 2 * sum(nats[:2])  # "some domain, and most of that in the deepest layers"


def test_without_the_signposts_about_half_is_left(said):
    assert "'The town" in said["signposts"]
    shares = after(said["labels-removed"], "share of before:")
    assert min(shares) > 35 and max(shares) < 62
    assert max(numbers(said["labels-removed"].splitlines()[-1])) < 0.05
    gain = numbers(said["labels-removed-untrained"].splitlines()[-1])
    assert len(gain) == LAYERS and min(gain[0], *gain[2:]) > 1.7 and max(gain) < 5.2 and gain[1] < 1.3


def test_held_out_documents_say_the_same(said):
    rows, prompts = by_layer(said["replicate"]), by_layer(said["test"])
    for layer, (nats, p, fixed, p_fixed) in rows.items():
        assert max(p, p_fixed) < 0.05 and fixed < nats
        assert nats == pytest.approx(prompts[layer][0], rel=0.5)


def test_the_lab_agrees_with_the_report_that_came_with_the_model(said):
    """scripts/tiny/claims.py counts with other code, the start of the document included."""
    report = json.loads((files.DATA / "tiny/report.json").read_text())["models"]["olmoe"]["experts"]
    for layer, row in by_layer(said["replicate"]).items():
        assert row[0] == pytest.approx(report[layer]["mutual_information"], rel=0.03)


# ---- how many? -----------------------------------------------------------------------------------------------------


def test_one_prompt_per_kind_cannot_be_significant(said):
    alone, everything = said["one-per-kind"].splitlines()
    assert set(numbers(alone.split(" p ")[1])) == {1.0}
    assert max(numbers(everything.split(" p ")[1])) < 0.05


def test_a_uniform_router_has_specialists_in_seven_prompts_and_they_vanish_elsewhere(said):
    rows = [numbers(line)[-2:] for line in said["specialists"].splitlines()[3:]]
    uniform, trained = rows[::2], rows[1::2]
    assert uniform[0][0] > 1.5 and all(abs(elsewhere - 1) < 0.05 for _, elsewhere in uniform)
    assert trained[0][0] - trained[0][1] > 0.3 and min(elsewhere for _, elsewhere in trained) > 1.5


def test_eight_prompts_per_kind_show_the_effect_in_every_layer(said):
    header, *lines = said["enough"].splitlines()[1:]
    rows = {re.match(r"[^\d]+", line)[0].strip(): numbers(line) for line in lines}
    at = dict(zip(numbers(header), zip(*rows.values(), strict=True), strict=True))
    assert set(at[1]) == {0.0}
    for name in ("trained, weakest layer", "trained, word fixed, weakest layer"):
        assert rows[name][list(at).index(8)] >= 0.95, name
    assert max(rows["uniform router, mean of layers"]) < 0.12


# ---- neighbours, pairs, memory -------------------------------------------------------------------------------------


def test_neighbours_repeat_more_than_chance_and_most_in_deep_layers(said):
    rows = {line.split()[0]: numbers(line)[-2 * LAYERS :] for line in said["repetition-table"].splitlines()[2:-1]}
    here, chance = rows["all"][::2], rows["all"][1::2]
    assert all(h > c for h, c in zip(here, chance, strict=True)) and here[-1] / chance[-1] > 3 > here[0] / chance[0]
    assert min(here[2:]) > max(here[:2])  # "deep layers repeat more"
    assert min(chance) > 100 / 16  # the load is uneven: above 1 / E
    half, own_load = rows["translation"][-2:]
    assert half > 45 and own_load / half > 0.7  # "most of that its own uneven load explains"


def test_the_published_repetitions_are_shown_with_their_source(said):
    text = said["mixtral-repetition"]
    assert "2401.04088" in text and numbers(text.splitlines()[-1])[-3:] == [14.4, 23.6, 25.3]
    rows = [numbers(line)[-3:] for line in text.splitlines()[3:]]
    times = [middle / first for first, middle, _ in rows]
    prose = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "repetition-read")
    assert len(rows) == 5 and f"{min(times):.1f} to {max(times):.0f} times" in prose
    assert all(100 / 8 < first < 15 for first, *_ in rows)  # "near chance"


def test_pairs_meet_more_and_less_often_than_their_load_explains(said):
    counts = [numbers(line)[-2:] for line in said["pairs"].splitlines()]
    ratios = [seen / expected for seen, expected in counts]
    assert min(ratios[::2]) > 3 and max(ratios[1::2]) < 0.25


def test_a_few_dozen_tokens_touch_most_experts_and_a_batch_more_than_a_text(said):
    rows, read = by_layer(said["working-set"]), by_layer(said["bytes-read"])
    assert all(at_32 > 0.94 * whole for at_32, whole in zip(read[32], read[128], strict=True))
    for B, (text, batch, uniform) in rows.items():
        assert text <= batch <= uniform + 0.1
        assert uniform == pytest.approx(16 * (1 - (1 - 2 / 16) ** B), abs=0.06)
    assert rows[32][0] > 0.8 * 16 and rows[16][0] < rows[16][1] - 1
    for name in LARGE:  # "by even draws a batch of 32 reads nearly all"
        config = published_config(name)
        of = next(shape[0] for part, shape in shapes(name).items() if ".experts." in part)
        assert 1 - (1 - config.num_experts_per_tok / of) ** 32 > 0.95, name


# ---- what the lab asks for at its end ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed():
    """Prompts and held-out documents of the seven kinds through tiny/olmoe: (routed, labels) of each."""
    model, tokenizer = models.load("tiny/olmoe", dtype=torch.float32, device="cpu")
    heldout = data.tiny_text("heldout")
    kinds = {
        "prompts": data.EXPERT_PROMPTS,
        "held out": {domain: heldout[domain].strip().split("\n\n") for domain in data.EXPERT_PROMPTS},
    }
    found = {}
    for which, documents in kinds.items():
        texts = [text for some in documents.values() for text in some]
        labels = torch.tensor([d for d, some in enumerate(documents.values()) for _ in some])
        found[which] = routing.route(model, tokenizer, texts), labels
    return found


def test_the_first_challenge_can_be_met_by_naive_bayes(course, routed):
    last = {which: (course.document_counts(its.indices, 16)[:, -1].double(), y) for which, (its, y) in routed.items()}
    counts, labels = last["prompts"]
    use = 1 + torch.eye(7).double()[labels].T @ counts
    logs = (use / use.sum(1, keepdim=True)).log()
    other, truth = last["held out"]
    assert ((other @ logs.T).argmax(1) == truth).double().mean() > 0.9


def test_the_second_challenge_can_be_met_by_the_cache_that_it_names(routed):
    its, _ = routed["prompts"]
    real, chosen = its.tokens >= 0, its.indices[LAYERS - 1]
    even = torch.rand(*real.shape, 16, generator=torch.Generator().manual_seed(0)).topk(2).indices
    shares = [found_in_cache(some[real].flatten().tolist(), 8) for some in (chosen, even)]
    assert shares[0] > 0.7 and shares[1] == pytest.approx(0.5, abs=0.03)


def found_in_cache(asked: list[int], size: int) -> float:
    """How often an expert is there, where the one used least recently makes room."""
    cache, found = [], 0
    for expert in asked:
        if expert in cache:
            found += 1
            cache.remove(expert)
        cache = [*cache, expert][-size:]
    return found / len(asked)


# ---- formulas against independent sources --------------------------------------------------------------------------


def test_mutual_information_is_that_of_scipy(course):
    rng = np.random.default_rng(0)
    for _ in range(20):
        table = rng.integers(1, 30, (7, 16))
        came = course.mutual_information(torch.tensor(table).double()).item()
        by_entropies = entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.ravel())
        by_likelihood = chi2_contingency(table, lambda_="log-likelihood", correction=False).statistic
        assert came == pytest.approx(by_entropies, rel=1e-9)
        assert came == pytest.approx(by_likelihood / 2 / table.sum(), rel=1e-9)
    empty = torch.tensor([[5.0, 0, 0], [0, 5, 0]]).double()
    assert course.mutual_information(empty).item() == pytest.approx(math.log(2))


def test_the_permutation_test_gives_the_exact_p_of_all_relabellings(course):
    """Ten documents in two domains: 252 relabellings, all of which can be listed."""
    rng = np.random.default_rng(3)
    counts = torch.tensor(rng.poisson(4, (10, 1, 3))).double()
    counts[:5, :, 0] += 2
    labels = torch.tensor([0] * 5 + [1] * 5)
    information = lambda table: course.mutual_information(table).round(decimals=9)  # noqa: E731 (as the lab has it)
    observed, _, p = course.permutation_test(counts, labels, information, 4000, torch.Generator().manual_seed(0))
    values = []
    for some in itertools.combinations(range(10), 5):
        one = counts[list(some), 0].sum(0)
        table = torch.stack([one, counts[:, 0].sum(0) - one]).numpy()
        values.append(entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.ravel()))
    exact = np.mean(np.array(values) >= observed.item() - 1e-9)
    assert p.item() == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000))


def beyond_words(tables):
    """As the lab has it: nats between what domains use and what their words alone would give."""
    used, by_words = tables.unbind(-4)
    return (torch.xlogy(used, used) - torch.xlogy(used, by_words)).sum((-2, -1)) / used.sum((-2, -1))


def corpus(rng, documents: int = 70, domains: int = 7, kinds: int = 12, experts: int = 8, shift: float = 0.0):
    """Documents whose words depend on the domain, experts on the word and on the document; on the domain by `shift`."""
    labels = np.arange(documents) % domains
    word_given_domain = rng.dirichlet(np.full(kinds, 0.3), domains)
    expert_given_word = rng.normal(0, 1.5, (kinds, experts))
    own, of_domain = rng.normal(0, 0.5, (documents, experts)), shift * rng.normal(0, 1, (domains, experts))
    tokens, chosen, document = [], [], []
    for d in range(documents):
        words = rng.choice(kinds, 40, p=word_given_domain[labels[d]])
        logits = expert_given_word[words] + own[d] + of_domain[labels[d]]
        chosen.append(np.argsort(-(logits + rng.gumbel(size=logits.shape)), 1)[:, :2])
        tokens.append(words)
        document.append(np.full(40, d))
    flat = [torch.tensor(np.concatenate(x)) for x in (tokens, chosen, document)]
    return *flat, torch.tensor(labels), experts


def p_of(course, rng, statistic, **options):
    tokens, chosen, document, labels, E = corpus(rng, **options)
    one_hot = torch.zeros(len(chosen), E).double().scatter(1, chosen, 1)
    used = torch.zeros(len(labels), E).double().index_add_(0, document, one_hot)
    if statistic is beyond_words:
        counts = torch.stack([used, course.expected_by_token(tokens, chosen, document, E)], 1)[:, :, None]
    else:
        counts = used[:, None]
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    return course.permutation_test(counts, labels, statistic, 99, generator)[2].item()


def test_words_alone_pass_the_plain_test_and_not_the_one_with_the_word_held_fixed(course):
    """No domain effect but through words, and documents with habits of their own: the level must hold."""
    rng = np.random.default_rng(0)
    plain = [p_of(course, rng, course.mutual_information) for _ in range(10)]
    fixed = [p_of(course, rng, beyond_words) for _ in range(100)]
    assert statistics.median(plain) < 0.05
    assert sum(p <= 0.05 for p in fixed) <= binom.ppf(0.999, 100, 0.05)


def test_a_domain_that_moves_the_same_words_to_other_experts_is_found(course):
    rng = np.random.default_rng(1)
    assert max(p_of(course, rng, beyond_words, shift=1.0) for _ in range(10)) <= 0.05


def test_what_is_left_by_words_is_a_lower_bound_of_the_conditional_information(course):
    """I(expert; domain | token) by scipy, per kind of token: the lab's measure is smaller, by convexity."""
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.5, 1.0):
        tokens, chosen, document, labels, E = corpus(rng, shift=shift)
        first = chosen[:, :1]
        domain, n = labels[document], len(tokens)
        conditional = 0.0
        for kind in tokens.unique():
            mine = tokens == kind
            table = np.zeros((7, E))
            np.add.at(table, (domain[mine].numpy(), first[mine, 0].numpy()), 1)
            information = entropy(table.sum(0)) + entropy(table.sum(1)) - entropy(table.ravel())
            conditional += mine.sum().item() / n * information
        expected = course.expected_by_token(tokens, first, document, E)
        used = torch.zeros_like(expected).index_add_(0, document, torch.eye(E).double()[first[:, 0]])
        member = torch.eye(7).double()[labels]
        found = beyond_words(torch.stack([member.T @ used, member.T @ expected])[:, None]).item()
        assert 0 <= found <= conditional + 1e-12


def test_chance_repetition_is_what_shuffled_tokens_give(course):
    """Tokens in any order have the load and no neighbours: the sum of p_e squared, up to the noise."""
    rng = np.random.default_rng(0)
    first = torch.tensor(rng.choice(5, (40, 60), p=[0.5, 0.2, 0.15, 0.1, 0.05]))
    repeated, chance = course.repetition(first)
    assert repeated == pytest.approx(chance, abs=4 * math.sqrt(chance / first.numel()))
    shares = np.bincount(first.flatten()) / first.numel()
    assert chance == pytest.approx((shares**2).sum()) and chance > 1 / 5


def test_expected_distinct_experts_are_what_uniform_draws_touch():
    rng = np.random.default_rng(0)
    E, k, B = 16, 2, 8
    touched = [len({e for _ in range(B) for e in rng.choice(E, k, replace=False)}) for _ in range(3000)]
    assert np.mean(touched) == pytest.approx(E * (1 - (1 - k / E) ** B), abs=0.1)


# ---- the parameters ------------------------------------------------------------------------------------------------


def test_another_model_is_a_parameter(tmp_path):
    """DeepSeekMoE has a dense first layer and four experts per token."""
    fewer = {"prompts": 16, "permutations": 49, "subsets": 2}
    run = notebooks.execute(LAB, folder=tmp_path, numbers=fewer, MODEL="tiny/deepseek-moe")
    assert run.error == "" and run.passed == run.checks
    cells = {cell.id: notebooks.text(cell) for cell in nbformat.read(run.notebook, as_version=4).cells}
    assert "layers with experts [1, 2, 3], E = 32, k = 4" in cells["layers"]
    assert list(by_layer(cells["test"])) == [1, 2, 3]


@pytest.mark.parametrize(("parameter", "value"), [("MODEL", "olmoe-1b-7b"), ("BITS", 4)])
def test_a_model_of_the_other_scale_or_odd_bits_are_refused_in_one_sentence(parameter, value):
    cells, scope = {cell.id: cell.source for cell in notebooks.read(LAB).cells}, {}
    exec(cells["parameters"], scope)
    scope[parameter] = value
    exec(cells["imports"], scope)
    with pytest.raises(ValueError, match=f"{parameter} = {value!r} is unknown: choose one of"):
        exec(cells["settings"], scope)


def test_the_downloads_that_the_header_names_are_those_of_the_published_files():
    header = next(cell.source for cell in notebooks.read(LAB).cells if cell.id == "needs")
    olmoe, deepseek, mixtral = (
        models.size(n).total * 2 / 1e9 for n in ("olmoe-1b-7b", "deepseek-moe-16b", "mixtral-8x7b")
    )
    assert f"{olmoe:.1f} GB; {deepseek:.1f} and {mixtral:.1f} GB" in header


def test_six_of_seven_large_mixtures_of_today_compute_with_five_to_eleven_percent(said):
    rows = re.findall(r"(\S+): ([\d.]+) B, [\d.]+ B at work \(([\d.]+)%\)", said["years-table"])
    large = {name: float(share) for name, total, share in rows if float(total) >= 30}
    assert len(rows) == 10 and large.pop("granite-4.0-h-small") > 25
    assert len(large) == 6 and {round(share) for share in large.values()} <= set(range(5, 12))
    assert min(float(share) for _, total, share in rows if float(total) < 30) > 18  # "about a fifth or more"
    older, newer = ({experts_of(name) for name in names} for names in (LARGE, large))
    assert (min(older), max(older), min(newer), max(newer)) == (8, 64, 128, 512)


def experts_of(name: str) -> int:
    """Experts of a layer, by the config's name for them."""
    config = published_config(name)
    return getattr(config, "num_experts", None) or config.num_local_experts
