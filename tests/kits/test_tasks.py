"""The tasks have the answers they say, the small model is Mamba's block, and the shipped curves and models hold."""

import json
from functools import partial

import curves as program
import pytest
import torch
import torch.nn.functional as F
from transformers import MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from shared.errors import BadInput
from shared.kits import tasks
from shared.scan import selective_scan

CURVES = json.loads(program.OUT.read_text())
SELECTS = {name: selects for name, selects in program.VARIANTS.items() if selects is not None}


pytestmark = pytest.mark.usefixtures("one_thread")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_training_leaves_tiny_numbers_as_they_were():
    torch.set_flush_denormal(False)  # a program that a test has called may have left it on
    torch.manual_seed(0)
    model = tasks.SelectiveModel(16)
    tasks.train(model, partial(tasks.induction, length=16), 1)
    tasks.accuracy(model, partial(tasks.induction, length=16), batches=1)
    assert torch.tensor(1e-45) * 1 > 0  # else what a notebook computes later depends on whether it has trained


# ---- tasks: each solved by a few lines that read the ids ----------------------------------------------------------


def solve_selective_copying(ids):
    return [token for token in ids if token not in (0, ids[-1])]


def solve_induction(ids):
    return [ids[ids.index(ids[-1]) + 1]]


def solve_recall(ids, keys=32):
    pairs = len(ids) // 3
    value = dict(zip(ids[0 : 2 * pairs : 2], ids[1 : 2 * pairs : 2], strict=True))
    assert len(value) == pairs and max(value) < keys <= min(value.values()), "keys differ, and are not values"
    assert sorted(value) == sorted(ids[2 * pairs :]), "every key is asked once, and no value is shown again"
    return [value[key] for key in ids[2 * pairs :]]


def solve_copying(ids):
    return ids[: ids.index(64)]


SOLVERS = {
    tasks.selective_copying: solve_selective_copying,
    tasks.induction: solve_induction,
    tasks.recall: solve_recall,
    tasks.copying: solve_copying,
}
SHAPES = {tasks.selective_copying: (68, 4), tasks.induction: (64, 1), tasks.recall: (24, 8), tasks.copying: (32, 16)}
each_task = pytest.mark.parametrize("task", SOLVERS, ids=lambda task: task.__name__)


@each_task
def test_answers_follow_from_the_ids(task):
    ids, answers = task(200, generator())
    assert ids.dtype == answers.dtype == torch.long
    assert (ids.shape[1], answers.shape[1]) == SHAPES[task]
    for row, wanted in zip(ids.tolist(), answers.tolist(), strict=True):
        assert SOLVERS[task](row) == wanted


def test_no_position_shows_its_own_answer_or_a_later_one():
    ids, answers = tasks.selective_copying(100, generator())
    assert (ids[:, -4:] == 9).all() and answers.max() < 9
    ids, answers = tasks.induction(100, generator())
    assert ((ids == 15).sum(1) == 2).all() and (ids[:, -1] == 15).all() and answers.max() < 15
    ids, _ = tasks.recall(100, generator())
    assert ids[:, 16:].max() < 32, "the questions are keys"
    ids, answers = tasks.copying(100, generator())
    assert (ids[:, 16] == 64).all() and torch.equal(ids[:, 17:], answers[:, :-1])


def test_places_and_order_are_spread_over_all_there_are():
    ids, _ = tasks.selective_copying(4000, generator(), positions=8, data=2)
    assert ((ids[:, :8] > 0).float().mean(0) - 2 / 8).abs().max() < 0.03
    ids, answers = tasks.induction(4000, generator(), length=8)
    first = (ids == 15).float().argmax(1)
    assert (torch.bincount(first, minlength=8) / 4000 - torch.tensor([1 / 6] * 6 + [0, 0])).abs().max() < 0.03
    assert (torch.bincount(answers.flatten()) / 4000 - 1 / 15).abs().max() < 0.02
    ids, _ = tasks.recall(4000, generator(), pairs=4)
    assert ((ids[:, 8:9] == ids[:, 0:8:2]).float().mean(0) - 1 / 4).abs().max() < 0.03


@each_task
def test_seeds_reproduce_and_nothing_trained_on_is_evaluated(task):
    assert torch.equal(task(8, generator(3))[0], task(8, generator(3))[0])
    assert not torch.equal(task(8, generator(3))[0], task(8, generator(4))[0])
    drawn = lambda seed, batches, size: {  # noqa: E731
        tuple(row) for stream in [generator(seed)] for _ in range(batches) for row in task(size, stream)[0].tolist()
    }
    evaluated = drawn(1_000_000, 16, 64)
    for seed in program.SEEDS:
        assert not evaluated & drawn(seed, 200, 32)


@pytest.mark.parametrize("positions", [16, 64])
def test_the_position_baseline_is_what_the_best_fixed_places_reach(positions):
    ids, answers = tasks.selective_copying(40_000, generator(), positions=positions)
    seen = ids[:, :positions, None] == answers[:, None]  # (batch, place, answer)
    at = seen.float().mean(0) + (ids[:, :positions] == 0).float().mean(0)[:, None] / 8  # noise there: guess
    baselines = tasks.copying_baselines(positions)
    assert baselines["position"] == pytest.approx(at.max(0).values.mean().item(), abs=0.01)
    assert baselines["chance"] == 1 / 8 < baselines["position"]


# ---- the selective model -------------------------------------------------------------------------------------------


def block(selects, seed=0):
    torch.manual_seed(seed)
    return tasks.SelectiveBlock(32, 8, selects)


@torch.no_grad()
def test_with_all_selected_the_block_is_transformers_mixer():
    ours = block(("delta", "B", "C"))
    torch.nn.init.normal_(ours.norm.weight)
    theirs = MambaMixer(MambaConfig(hidden_size=32, state_size=8, expand=2, time_step_rank=2), 0)
    low, wide = ours.select["delta"]
    theirs.load_state_dict(
        {
            "A_log": ours.A_log,
            "D": ours.D,
            "in_proj.weight": ours.in_proj.weight,
            "conv1d.weight": ours.conv1d.weight,
            "conv1d.bias": ours.conv1d.bias,
            "x_proj.weight": torch.cat([low.weight, ours.select["B"].weight, ours.select["C"].weight]),
            "dt_proj.weight": wide.weight,
            "dt_proj.bias": ours.dt_bias,
            "out_proj.weight": ours.out_proj.weight,
        }
    )
    x = torch.randn(3, 40, 32)
    torch.testing.assert_close(ours(x), x + theirs(ours.norm(x)), atol=1e-5, rtol=1e-5)


def as_convolution(block, x):
    """The scan's output (batch, d_inner, T) as u convolved with the kernel of the parameters of the first step."""
    given = block.inputs(x)
    delta, B, C = given["delta"][0, :, 0], given["B"][0, :, 0], given["C"][0, :, 0]
    A, T = -block.A_log.exp(), x.shape[1]
    decay = (delta[:, None, None] * A[..., None] * torch.arange(T)).exp()  # (d_inner, d_state, T)
    kernel = (C[:, None] * decay * delta[:, None, None] * B[:, None]).sum(1)
    u = F.pad(given["u"], (T - 1, 0))
    return F.conv1d(u, kernel.flip(-1)[:, None], groups=len(kernel))


@torch.no_grad()
@pytest.mark.parametrize("name", SELECTS)
def test_only_without_selection_the_scan_is_one_fixed_convolution(name):
    part, x = block(SELECTS[name]), torch.randn(2, 30, 32)
    given = part.inputs(x)
    y = selective_scan(*(given[key] for key in ("u", "delta")), -part.A_log.exp(), given["B"], given["C"])
    off = ((y - as_convolution(part, x)).norm() / y.norm()).item()
    assert off < 1e-5 if name == "none" else off > 0.01


@pytest.mark.parametrize("name", SELECTS)
def test_what_is_not_selected_is_the_same_for_every_input(name):
    one, other = (block(SELECTS[name]).inputs(torch.randn(1, 9, 32)) for _ in range(2))
    for key in ("delta", "B", "C"):
        constant = torch.equal(one[key], other[key]) and torch.equal(one[key][..., 0], one[key][..., -1])
        assert constant == (key not in SELECTS[name])


@torch.no_grad()
def test_delta_is_what_the_blocks_use():
    torch.manual_seed(0)
    model, ids = tasks.SelectiveModel(10, layers=3), torch.randint(10, (2, 7))
    delta = model.delta(ids)
    assert delta.shape == (2, 3, 7, 64) and (delta > 0).all()
    x = model.blocks[0](model.embedding(ids))
    torch.testing.assert_close(delta[:, 1], model.blocks[1].inputs(x)["delta"].transpose(1, 2))


def test_variants_have_comparable_sizes_and_start_from_published_steps():
    sizes = {name: sum(p.numel() for p in program.model(name, 10, 0).parameters()) for name in program.VARIANTS}
    assert max(sizes.values()) < 1.2 * min(sizes.values())
    assert all(sizes["none"] < sizes[name] for name in ("delta", "BC", "all"))
    start = F.softplus(block(()).dt_bias)
    assert start.min() >= 0.0009 and start.max() <= 0.11


def test_an_unknown_name_is_refused():
    with pytest.raises(BadInput, match="'A'"):
        tasks.SelectiveModel(10, selects=("A",))
    with pytest.raises(BadInput, match=r"no recall model 'rnn'.*hybrid, mamba, transformer"):
        tasks.recall_model("rnn")


# ---- training ------------------------------------------------------------------------------------------------------


def trained(seed=0, steps=5, **options):
    torch.manual_seed(0)
    model = tasks.SelectiveModel(16, d_model=16)
    return model, tasks.train(model, partial(tasks.induction, length=8), steps, seed, **options)


def test_training_is_the_same_for_the_same_seed_only():
    (one, first), (other, second), (third, _) = trained(), trained(), trained(seed=1)
    assert first == second and len(first) == 5
    same = [torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(one.head.weight, third.head.weight)


def test_training_ends_once_it_is_enough():
    assert len(trained(steps=30)[1]) == 30
    curve = trained(steps=30, enough=0.05)[1]  # chance is 1/15
    assert len(curve) < 30 and sum(curve[-20:]) >= 20 * 0.05 > sum(curve[-21:-1])


@pytest.mark.slow
def test_selection_learns_induction_live_and_goes_on_beyond_its_length():
    torch.manual_seed(0)
    model = tasks.SelectiveModel(16, selects=("delta",))
    curve = tasks.train(model, partial(tasks.induction, length=16), steps=200, lr=1e-2, enough=0.995)
    assert len(curve) < 200 and curve[0] < 0.3, "it begins near chance and has learned before its last step"
    assert tasks.accuracy(model, partial(tasks.induction, length=64)) > 0.9


# ---- what is shipped -----------------------------------------------------------------------------------------------


def test_curves_were_made_with_the_settings_of_the_program():
    assert CURVES["settings"] == json.loads(json.dumps(program.settings()))
    assert CURVES["made"]["command"] == "make curves" and CURVES["made"]["seconds"].keys() == CURVES["settings"].keys()


def test_curves_of_selective_copying_are_all_there():
    for runs in (CURVES["selective_copying"][variant] for variant in program.VARIANTS):
        assert runs.keys() == set(map(str, program.SEEDS))
        for run in runs.values():
            assert run["steps"][-1] == 1000 and len(run["steps"]) == len(run["accuracy"]) == 50
            assert abs(run["accuracy"][0] - 1 / 8) < 0.1, "it begins near chance"


def test_selection_beats_none_on_every_seed():
    final = {variant: [run["final"] for run in runs.values()] for variant, runs in CURVES["selective_copying"].items()}
    for seed in program.SEEDS:
        assert final["all"][seed] > final["none"][seed] + 0.1
    assert min(final["none"]) > tasks.copying_baselines()["position"] + 0.1, "gates and convolution see the tokens"


def test_selection_goes_beyond_the_trained_length_and_the_others_do_not():
    found = CURVES["induction"]
    assert min(found["all"]["1024"]) > 0.9
    assert max(found["none"]["1024"]) < 0.5 and max(found["attention"]["1024"]) < 0.5


@pytest.fixture(scope="module")
def specialists():
    return {name: tasks.recall_model(name) for name in program.SHIPPED}


@pytest.mark.parametrize("name", program.SHIPPED)
@pytest.mark.parametrize(
    ("task", "key", "sizes"), [(tasks.recall, "pairs", (4, 16)), (tasks.copying, "length", (8, 24, 48))]
)
def test_recall_models_do_live_what_the_curves_say(specialists, name, task, key, sizes):
    for size in sizes:
        recorded = CURVES[task.__name__][name][str(size)][0]
        assert tasks.accuracy(specialists[name], partial(task, **{key: size})) == pytest.approx(recorded, abs=0.01)


def test_recall_models_are_of_a_size():
    sizes = [CURVES["specialists"][name]["parameters"] for name in program.SHIPPED]
    assert max(sizes) < 1.1 * min(sizes)
    assert sum(file.stat().st_size for file in tasks.RECALL.rglob("*")) < 1.5e6
    assert program.OUT.stat().st_size < 150e3


@pytest.mark.parametrize("seed", program.RUNS[program.specialists][0]["hybrid"])
def test_the_hybrid_recalls_what_the_state_alone_does_not(seed):
    recall, copying = (
        {name: {int(size): values[seed] for size, values in CURVES[task][name].items()} for name in program.SHIPPED}
        for task in ("recall", "copying")
    )
    assert recall["hybrid"][16] > 0.95 > recall["mamba"][16] + 0.2
    assert copying["hybrid"][24] > 0.95 > copying["mamba"][24] + 0.1
    falling = list(copying["mamba"].values())
    assert falling == sorted(falling, reverse=True), "the longer the string, the less of it fits the state"
    assert copying["hybrid"][64] > copying["transformer"][64] + 0.3, "beyond the transformer's trained positions"


def test_the_size_of_the_state_bounds_recall():
    recalled = [CURVES["recall"][name]["8"][0] for name in ("mamba-2", "mamba-4", "mamba")]
    assert recalled == sorted(recalled) and recalled[-1] > recalled[0] + 0.1
    assert CURVES["recall"]["hybrid-2"]["8"][0] > 0.95, "attention does not need the state"


@pytest.mark.slow
def test_general_models_do_not_copy_from_the_context():
    for name, found in CURVES["generalists"].items():
        assert found["second"]["accuracy"] < 0.05, name
        assert found["second"]["bits"] > found["first"]["bits"] - 1, name
    live = program.generalists("mamba")
    assert live["second"]["bits"] == pytest.approx(CURVES["generalists"]["mamba"]["second"]["bits"], abs=0.01)


class Copier(torch.nn.Module):
    """Predicts what followed `length` tokens ago, or id 0: it copies from its context and does nothing else."""

    config = type("Config", (), {"vocab_size": 50})
    device = torch.device("cpu")

    def __init__(self, length):
        super().__init__()
        self.length = length

    def forward(self, ids, use_cache):
        guess = F.pad(ids, (self.length - 1, 0))[:, : ids.shape[1]]
        return type("Output", (), {"logits": 20.0 * F.one_hot(guess, 50)})


def test_repetition_sees_copying_where_there_is_some():
    found = tasks.repetition(Copier(16), length=16)
    assert found["second"]["accuracy"] == 1 and found["second"]["bits"] < 0.01
    assert found["first"]["accuracy"] < 0.1 and found["first"]["bits"] > 5
    assert tasks.repetition(Copier(12), length=16)["second"]["accuracy"] < 0.2, "another distance is no copy"


@pytest.mark.slow
def test_runs_are_kept_and_repeated_only_when_their_settings_change(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "PARTS", tmp_path)
    options = {"variant": "all", "seed": 0, "steps": 4, "size": 2}
    first = program.kept(program.selective_copying, **options)
    assert first["result"]["steps"] == [2, 4] and len(first["result"]["accuracy"]) == 2
    assert program.kept(program.selective_copying, **options) == first
    assert len(program.kept(program.selective_copying, **options | {"steps": 6})["result"]["steps"]) == 3
    assert capsys.readouterr().out.count("selective_copying-all-0") == 2
