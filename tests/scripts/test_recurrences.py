"""What is trained for lab 2.4.2 is its four updates and nothing else, and the shares that ship are what it says."""

import json
import statistics

import pytest
import recurrences as program
import torch
import torch.nn.functional as F

from shared import notebooks

pytestmark = pytest.mark.usefixtures("one_thread")
SHIPPED = json.loads(program.OUT.read_text())
BATCH, T, N, P = 2, 12, 5, 4


@pytest.fixture(scope="module")
def lab() -> dict:
    """The names of the lab's loop and its updates."""
    source, names = {cell.id: cell.source for cell in notebooks.solve("2.4.2").cells}, {}
    for cell in ("imports", "updates", "ex-delta-step"):
        exec(source[cell], names)
    return names


def drawn():
    torch.manual_seed(0)
    q, k = torch.randn(2, BATCH, T, N)
    v = torch.randn(BATCH, program.HEADS, T, P)
    log_decay, beta = -torch.rand(BATCH, T, program.HEADS), torch.rand(BATCH, T, program.HEADS)
    return q, k, v, log_decay, beta


def test_adding_over_a_whole_sequence_is_the_loop_of_the_lab(lab):
    q, k, v, log_decay, _ = drawn()
    found = program.additive(q, k, v, log_decay)
    for b in range(BATCH):
        for head in range(program.HEADS):
            decay = log_decay[b, :, head].exp()
            by_loop = lab["read_all"](lab["additive"], q[b], k[b], v[b, head], decay)
            torch.testing.assert_close(found[b, head], by_loop, atol=1e-5, rtol=1e-5)


def test_correcting_over_a_whole_sequence_is_the_loop_of_the_lab(lab):
    q, k, v, log_decay, beta = drawn()
    k = F.normalize(k, dim=2)
    found = program.correcting(q, k, v, log_decay, beta)
    for b in range(BATCH):
        for head in range(program.HEADS):
            gates = log_decay[b, :, head].exp(), beta[b, :, head]
            by_loop = lab["read_all"](lab["delta_step"], q[b], k[b], v[b, head], *gates)
            torch.testing.assert_close(found[b, head], by_loop, atol=1e-5, rtol=1e-5)


def test_mamba_in_the_block_is_the_loop_of_the_lab(lab):
    torch.manual_seed(0)
    block = program.Block(N, "Mamba")
    q, k = torch.randn(2, 1, T, N)
    v, rate = torch.randn(1, T, program.VALUES), torch.randn(1, T, program.HEADS)
    with torch.no_grad():
        found = block.read(v, k, q, rate, rate)[0]
        delta = F.softplus(block.dt_proj(rate) + block.dt_bias)[0]
        decay = torch.exp(delta[:, None] * -block.A_log.exp().T)  # (T, N, values)
        by_loop = lab["read_all"](lab["additive"], q[0], k[0], delta * v[0], decay)
    torch.testing.assert_close(found, by_loop, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("update", program.UPDATES)
def test_a_model_reads_from_the_past_alone_and_every_weight_learns(update):
    torch.manual_seed(0)
    model = program.Model(8, update)
    ids = torch.randint(64, (2, 30))
    torch.testing.assert_close(model(ids)[:, :20], model(ids[:, :20]), atol=1e-5, rtol=1e-5)
    model(ids).sum().backward()
    still = {name for name, weight in model.named_parameters() if weight.grad is None}
    assert not still


def test_models_differ_little_in_size():
    for N in map(str, program.SIZES):
        sizes = [SHIPPED["parameters"][update][N] for update in program.UPDATES]
        assert max(sizes) < 1.25 * min(sizes)


@pytest.mark.slow
def test_a_short_training_learns_two_pairs():
    settings = program.SETTINGS | {"steps": 150, "most": 2, "pairs": (2,)}
    assert program.run("linear attention", 16, 0, **settings)["right"]["2"] > 0.3  # by guessing 1 in 32


# ---- what is shipped -----------------------------------------------------------------------------------------------


def test_the_runs_were_made_with_the_settings_of_the_program():
    assert SHIPPED["settings"] == json.loads(json.dumps(program.SETTINGS | {"seeds": program.SEEDS}))
    assert SHIPPED["made"]["command"] == "make recurrences" and SHIPPED["made"].keys() >= {"machine", "torch", "date"}
    assert SHIPPED["state_bytes"] == {str(N): 2 * N * 64 * 4 for N in program.SIZES}
    for update in program.UPDATES:
        assert SHIPPED["recall"][update].keys() == set(map(str, program.SIZES))
        for found in SHIPPED["recall"][update].values():
            assert found.keys() == set(map(str, program.SETTINGS["pairs"]))
            assert all(len(seeds) == 3 and all(0 <= share <= 1 for share in seeds) for seeds in found.values())


def of_32_pairs(update: str, N: int) -> list[float]:
    return SHIPPED["recall"][update][str(N)]["32"]


def test_eight_times_the_state_recalls_more_with_every_update_and_seed():
    smallest, largest = program.SIZES[0], program.SIZES[-1]
    assert largest == 8 * smallest and program.SETTINGS["most"] == 32 / 2
    for update in program.UPDATES:
        assert min(of_32_pairs(update, largest)) > max(of_32_pairs(update, smallest)) + 0.1, update


def test_correcting_is_not_ahead_of_adding_where_no_key_comes_twice():
    for N in program.SIZES:
        added, corrected = (statistics.mean(of_32_pairs(u, N)) for u in ("linear attention", "Gated DeltaNet"))
        assert corrected < added


def test_the_middle_state_of_mamba_2_recalls_less_than_the_smallest_on_two_of_three_seeds():
    smallest, middle, _ = (of_32_pairs("Mamba-2", N) for N in program.SIZES)
    assert sum(more < less for less, more in zip(smallest, middle, strict=True)) == 2


def test_at_the_smallest_state_seeds_differ_as_much_as_updates():
    found = [of_32_pairs(update, program.SIZES[0]) for update in program.UPDATES]
    means = [statistics.mean(seeds) for seeds in found]
    assert max(max(seeds) - min(seeds) for seeds in found) >= max(means) - min(means)


def test_the_lab_names_the_settings_of_the_runs():
    text = next(cell.source for cell in notebooks.read("2.4.2").cells if cell.id == "learned-recall-intro")
    assert f"up to {program.SETTINGS['most']} pairs" in text and f"{program.SETTINGS['steps']:,} steps" in text
    assert len(program.SEEDS) == 3 and "three seeds" in text
