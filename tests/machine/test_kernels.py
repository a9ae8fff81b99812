"""The compiled kernels without a GPU: a course that has them runs on the CPU, wrong ones are found, a build is whole or
nothing.

No GPU was here: kernels are stand-ins. What is real: transformers' choice, the packages' sources, pip, and nvcc's
command line, which a recording nvcc takes.
"""

import functools
import inspect
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from contextlib import redirect_stdout

import pytest
import torch
import torch.nn.functional as F
from conftest import stub_kernels
from kernels import verify
from rehearsal import warm

from shared.files import ROOT
from shared.machine import kernels

pytestmark = pytest.mark.slow

# ---- who runs them ----------------------------------------------------------------------------------------------


def python(code: str, path="", **env) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT)


def does(code: str, path: str, env: dict[str, str]) -> tuple[str, str]:
    """What code prints that has this folder on its path, and its traceback."""
    os.environ.update(env, PYTHONPATH=path)  # also for a process that it starts
    sys.path.insert(0, path)
    modelling = [name for name in sys.modules if "mamba" in name or "jamba" in name]
    assert modelling == [], "too late: transformers looks for kernels when these are imported"
    with redirect_stdout(io.StringIO()) as out:
        try:
            exec(code, {})
        except Exception:
            return out.getvalue(), traceback.format_exc()
    return out.getvalue(), ""


@pytest.fixture(scope="module")
def forked():
    """`does` in a fork of a process that has imported the large part of torch and transformers, and no kernels."""
    imported = ["transformers.generation.utils", "transformers.modeling_layers", "transformers.integrations"]
    with warm.process({**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, imported) as worker:
        yield lambda code, path="", **env: worker.submit(warm.in_a_fork, does, code, str(path), env).result()


# What the labs do with Mamba and Jamba: load, generate, score, continue a cache, time the library's scan, train.
USE = """
import torch
from transformers import MambaConfig, MambaForCausalLM
from shared import models, scan
from shared.kits import tasks

found = {}
for name in ("tiny/mamba", "tiny/jamba"):
    model, tokenizer = models.load(name, dtype=torch.float32, device="cpu")
    ids = tokenizer("The river carries the boat", return_tensors="pt").input_ids
    found[name, "path"] = models.path(model)
    with torch.no_grad():
        found[name, "tokens"] = model.generate(ids, max_new_tokens=8, min_new_tokens=8, do_sample=False).tolist()
        found[name, "logits"] = model(ids).logits.double().sum().item()
        with scan.in_transformers():
            found[name, "path in the course's scan"] = models.path(model)
            found[name, "logits with the course's scan"] = model(ids).logits.double().sum().item()
    model.train()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    gradients = [p.grad.double().abs().sum().item() for p in model.parameters() if p.grad is not None]
    found[name, "training"] = loss.item(), sum(gradients)
torch.manual_seed(0)
small = {"vocab_size": 16, "hidden_size": 16, "num_hidden_layers": 2}
model = MambaForCausalLM(MambaConfig(**small, state_size=4))
tasks.train(model, tasks.induction, steps=2)
found["trained"] = sum(p.double().abs().sum().item() for p in model.parameters())
found["recall"] = tasks.recall_model("mamba")(torch.arange(12)[None]).logits.double().sum().item()
print(found)
"""


@pytest.fixture(scope="module")
def without(forked):
    """What a course without kernels gives."""
    said, problem = forked(USE)
    assert not problem
    return said


def test_with_kernels_installed_the_cpu_gives_the_same_results_by_the_same_path(tmp_path, without):
    done = python(USE, stub_kernels(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout == without
    assert "('tiny/mamba', 'path'): 'reference'" in without and "the course's scan\"): 'course'" in without


# Families beside the course's own that take functions of the packages: their sizes, and a model of one on the CPU.
OTHERS = """
import torch
from transformers import Mamba2Config
from shared import models

for name in ("mamba2-2.7b", "nemotron-3-nano-30b-a3b", "granite-4.0-h-tiny", "qwen3.5-0.8b", "lfm2-8b-a1b"):
    print(name, models.size(name))
small = Mamba2Config(vocab_size=16, hidden_size=32, num_hidden_layers=2, num_heads=4, head_dim=16, n_groups=1)
model = models.from_config(small, torch.float32, torch.device("cpu"))
with torch.no_grad():
    print(model(torch.arange(12)[None]).logits.double().sum().item())
"""


def test_with_kernels_installed_the_other_families_have_the_same_sizes_and_run_on_the_cpu(tmp_path, forked):
    without, with_kernels = forked(OTHERS), forked(OTHERS, stub_kernels(tmp_path))
    assert with_kernels == without and without[0].count("ModelSize") == 5 and without[1] == ""


def test_without_the_remedy_the_stub_crashes_as_the_real_kernels_do(tmp_path, forked):
    """Otherwise the test above would show nothing."""
    code = "from shared.machine import kernels\nkernels.by_device = lambda *models: None\n" + USE
    assert "RuntimeError: a CUDA kernel got a CPU tensor" in forked(code, stub_kernels(tmp_path))[1]


def test_a_broken_build_leaves_the_reference_and_is_called_broken(tmp_path, forked):
    stub_kernels(tmp_path, "raise ImportError('selective_scan_cuda.so: undefined symbol: _ZN3c104cuda')\n")
    said, _ = forked(
        "from shared import models\nfrom shared.machine import kernels\n"
        "print(models.path(models.load('tiny/mamba', device='cpu')[0]))\nprint(*kernels.status())",
        tmp_path,
    )
    assert said.splitlines() == [
        "reference",
        "broken ImportError: selective_scan_cuda.so: undefined symbol: _ZN3c104cuda",
    ]


def test_status_tells_installed_from_half_installed_from_absent(tmp_path):
    code = "from shared.machine import kernels\nprint(*kernels.status())"
    assert python(code).stdout == "not installed \n"
    assert python(code, stub_kernels(tmp_path)).stdout == "installed \n"
    (tmp_path / "mamba_ssm").rename(tmp_path / "away")
    assert python(code, tmp_path).stdout == "broken causal_conv1d is there without mamba_ssm\n"


CHOICE = """
from types import SimpleNamespace
import torch
from shared import models
from shared.machine import kernels
from transformers.models.mamba import modeling_mamba as library
kernels.by_device()
kernels.by_device()
chosen = lambda name: [kernels.chosen(getattr(library, name), gpu).__module__ for gpu in (True, False)]
found = {name: chosen(name) for name in kernels.FUNCTIONS}
config = SimpleNamespace(model_type="mamba")
paths = [models.path(SimpleNamespace(config=config, device=torch.device(name))) for name in ("cuda", "cpu")]
print((found, paths))
"""


def test_a_gpu_gets_the_kernel_and_a_cpu_the_reference_unless_the_kernels_are_off(tmp_path, forked):
    library = "transformers.models.mamba.modeling_mamba"
    found, paths = eval(forked(CHOICE, stub_kernels(tmp_path))[0])
    assert paths == ["kernel", "reference"]
    assert all(cpu == library and gpu.split(".")[0] in kernels.PACKAGES for gpu, cpu in found.values())
    found, paths = eval(forked(CHOICE, tmp_path, MAMBA_KERNELS="off")[0])
    assert paths == ["reference", "reference"]
    assert set(map(tuple, found.values())) == {(library, library)}


# ---- do they compute the right thing ----------------------------------------------------------------------------


@functools.cache
def reference() -> dict:
    """The library's own code in the kernels' place, and a whole mixer in that of the fused one, which it lacks."""
    from transformers.models.mamba import modeling_mamba as library

    functions = {name: inspect.unwrap(getattr(library, name)) for name in kernels.FUNCTIONS}
    conv, scanned = functions["causal_conv1d_fn"], functions["mamba_selective_scan"]

    def inner(xz, weight, bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D, delta_bias, delta_softplus):
        x, z = xz.chunk(2, 1)
        x = conv(x, weight[:, 0], bias, "silu")
        delta, B, C = (x_proj @ x).split([dt_proj.shape[1], A.shape[1], A.shape[1]], 1)
        y = scanned(x, dt_proj @ delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus)
        return F.linear(y.transpose(1, 2).to(xz.dtype), out_proj)

    return {**functions, "mamba_inner_fn": inner}


def test_the_reference_passes_as_a_kernel_with_room_to_spare():
    checks = verify.verify("cpu", 70, reference())
    assert {(check.name, check.dtype) for check in checks} == {
        (name, dtype) for name in kernels.FUNCTIONS for dtype in ("float32", "bfloat16")
    }
    assert all(check.passed and check.error < verify.TOLERANCE[check.dtype] / 3 for check in checks), checks


def test_what_the_library_lacks_is_left_out_and_not_called_right():
    names = {check.name for check in verify.verify("cpu", 9)}
    assert names == set(kernels.FUNCTIONS) - {"mamba_inner_fn"}


def changed(name, change):
    """The reference of this name with something wrong."""
    right = reference()[name]

    def wrong(*args, **kwargs):
        return change(right, *args, **kwargs)

    return {name: wrong}


class ForgetsTheFirstGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clone().index_fill_(-1, torch.tensor([0]), 0.0)


def late(right, x, *rest, **options):
    return right(x.roll(1, 2), *rest, **options)


def without_skip(right, *args, **options):
    return right(*args, **{**options, "D": torch.zeros_like(options["D"])})


def without_softplus(right, *args, **options):
    return right(*args, **{**options, "delta_softplus": False})


def state_of_the_step_before(right, *args, **options):
    y, _ = right(*args, **options)
    return y, right(*(x[..., :-1] if x.dim() == 3 else x for x in args), **{**options, "z": options["z"][..., :-1]})[1]


def forgets_a_piece(right, u, *rest, **options):
    """As a scan that does not pass the state on from its first 2,048 steps, here the first half."""
    half = u.shape[2] // 2
    parts = [
        right(*(x[..., part] if x.dim() == 3 else x for x in (u, *rest)), **{**options, "z": options["z"][..., part]})
        for part in (slice(half), slice(half, None))
    ]
    return torch.cat([parts[0][0], parts[1][0]], 2), parts[1][1]


def no_gradient_of_the_first_step(right, x, *rest, **options):
    return right(ForgetsTheFirstGradient.apply(x), *rest, **options)


def no_gradient(right, x, *rest, **options):
    return right(x.detach(), *rest, **options)


def keeps_the_state(right, x, state, *rest, **options):
    return right(x, state.clone(), *rest, **options)


def keeps_the_other_state(right, state, *rest, **options):
    return right(state.clone(), *rest, **options)


def not_a_number(right, *args, **options):
    y, last = right(*args, **options)
    return y * float("nan"), last


def crashes(right, *args, **options):
    raise RuntimeError("no kernel image is available for execution on the device")


@pytest.mark.parametrize(
    ("name", "change", "worst"),
    [
        ("causal_conv1d_fn", late, ""),
        ("causal_conv1d_fn", no_gradient_of_the_first_step, "gradient of x"),
        ("causal_conv1d_update", keeps_the_state, "new state"),
        ("mamba_selective_scan", without_skip, ""),
        ("mamba_selective_scan", without_softplus, ""),
        ("mamba_selective_scan", forgets_a_piece, ""),
        ("mamba_selective_scan", state_of_the_step_before, "last state"),
        ("mamba_selective_scan", no_gradient, "gradient of u"),
        ("mamba_selective_scan", not_a_number, "output"),
        ("mamba_selective_scan", crashes, "RuntimeError: no kernel image"),
        ("mamba_selective_state_update", keeps_the_other_state, "new state"),
        ("mamba_inner_fn", late, ""),
        ("mamba_inner_fn", no_gradient, "gradient of xz"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_wrong_kernel_is_found_in_both_dtypes(name, change, worst):
    checks = verify.verify("cpu", 24, changed(name, change), [name])
    assert [(check.name, check.dtype) for check in checks if not check.passed] == [
        (name, "float32"),
        (name, "bfloat16"),
    ]
    for check in checks:
        assert check.passed or (check.worst.startswith(worst) and check.error > 2 * verify.TOLERANCE[check.dtype])


def test_verification_prints_json(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["verify.py", "--device", "cpu", "--length", "9"])
    runpy.run_path(str(ROOT / "scripts/kernels/verify.py"), run_name="__main__")
    checks = json.loads(capsys.readouterr().out)
    assert {check["name"] for check in checks} == set(kernels.FUNCTIONS) - {"mamba_inner_fn"}
