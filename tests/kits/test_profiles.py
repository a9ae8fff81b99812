"""The parts of a decode step add up to it, and its operations are counted exactly."""

import pytest
import torch
from recorder import Leaves, storages_of
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from transformers import MambaConfig, MambaForCausalLM

from shared import models
from shared.kits import profiles


def mamba(layers: int) -> MambaForCausalLM:
    torch.manual_seed(0)
    return MambaForCausalLM(MambaConfig(vocab_size=300, hidden_size=32, num_hidden_layers=layers)).eval()


def prompt(length: int = 16) -> torch.Tensor:
    return torch.randint(100, 200, (1, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_operations_are_counted_and_twice_the_layers_take_more_of_them():
    two, again, four = (profiles.step_profile(mamba(layers), prompt()) for layers in (2, 2, 4))
    assert two.operations == again.operations > 50
    assert 1.6 * two.operations < four.operations < 2 * two.operations
    assert two.kernels == 0 and two.seconds > 0 and two.profiled_seconds > 0


def test_bytes_are_what_operations_read_and_write_and_views_move_nothing():
    x, y = torch.ones(1000), torch.ones(1000)
    with profiles.Counted() as count:
        x.view(10, 100)[3:].t()
    assert count.bytes == 0 and count.operations == 3
    with profiles.Counted() as count:
        x.add_(y)  # x is given and returned
        torch.cat([x, y])
    assert count.bytes == 12_000 + 16_000 and count.operations == 2
    with profiles.Counted() as count:
        torch.ones(1).expand(1000).sum()
    assert count.bytes < 100  # one number is read, however often


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny/mamba", "tiny/transformer", "tiny/jamba"])
def test_on_a_cpu_the_parts_add_up_to_the_step(name):
    model, _ = models.load(name, device="cpu")
    shares = profiles.step_profile(model, prompt()).shares
    assert list(shares) == ["matrix products", "other operations", "between operations"]
    assert sum(shares.values()) == pytest.approx(1) and min(shares.values()) > 0


class Readers(Leaves):
    """Names of the operators that compute with one of `matrices`."""

    def __init__(self, matrices: list[torch.Tensor]):
        super().__init__()
        self.matrices, self.names = storages_of(matrices), set()

    def see(self, function, args, kwargs):
        result = function(*args, **kwargs)
        given = storages_of((args, kwargs))
        if given & self.matrices and not storages_of(result) <= given:  # a view computes nothing
            self.names.add(function.overloadpacket.__name__)
        return result


@pytest.mark.parametrize("name", models.TINY)
def test_no_weight_matrix_is_multiplied_under_a_name_that_the_profile_does_not_know(name):
    model, _ = models.load(name, device="cpu")
    with torch.inference_mode():
        logits, cache = models.forward(model, prompt())
        with Readers([p for p in model.parameters() if p.ndim >= 2]) as readers:
            models.forward(model, logits.argmax(-1), cache)
    # A row of a table; Mamba's short convolution; and its logarithms of A, made float32 before each use.
    assert readers.names - {"embedding", "convolution", "_to_copy"} <= set(profiles.PRODUCTS)
    assert readers.names & set(profiles.PRODUCTS)


def event(name: str, device: DeviceType, start: float, end: float) -> FunctionEvent:
    return FunctionEvent(id=0, name=name, thread=0, start_us=start, end_us=end, device_type=device)


def test_on_a_gpu_the_kernels_are_the_time_in_which_it_computes():
    step = [event("gemv", DeviceType.CUDA, 0, 30), event("copy", DeviceType.CUDA, 60, 70)]
    assert profiles._on_gpu([step], 100e-6) == pytest.approx({"GPU computing": 40e-6, "GPU waiting": 60e-6})
    # Clocks differ: a step of which every moment is a kernel's is no more than all of it.
    assert profiles._on_gpu([step], 39e-6) == pytest.approx({"GPU computing": 39e-6, "GPU waiting": 0.0})


def test_a_products_own_time_is_not_that_of_the_operation_around_it_and_a_disturbance_is_nobodys():
    def step(late: float) -> tuple[float, list[FunctionEvent]]:
        outer = event("aten::linear", DeviceType.CPU, 0, 50 + late)
        inner = event("aten::mm", DeviceType.CPU, 10, 40 + late)
        outer.append_cpu_child(inner)
        return 100e-6 + late * 1e-6, [outer, inner]

    parts = profiles._on_cpu([step(0), step(900), step(0)])
    assert list(parts.values()) == pytest.approx([30e-6, 20e-6, 50e-6])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="reads the clock of a GPU")
def test_on_a_gpu_the_parts_add_up_and_kernels_are_counted():
    profile = profiles.step_profile(mamba(2).to("cuda"), prompt())
    assert list(profile.shares) == ["GPU computing", "GPU waiting"]
    assert sum(profile.shares.values()) == pytest.approx(1) and profile.kernels > 20
