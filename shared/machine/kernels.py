"""Mamba's compiled kernels, mamba-ssm and causal-conv1d: are they there, and what runs them.

transformers looks for them once, when a modelling file is imported, and then runs them on every tensor, on the CPU too,
where they crash. `by_device` gives each tensor the code that can run it, whatever is installed.
"""

import functools
import importlib
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

PACKAGES = ("causal_conv1d", "mamba_ssm")
FAMILIES = ("mamba", "falcon_mamba", "jamba")
FUNCTIONS = (  # what each family's modelling file takes from the packages
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "mamba_selective_scan",
    "mamba_selective_state_update",
    "mamba_inner_fn",
)

# ---- are they there ---------------------------------------------------------------------------------------------

IMPORTS = """
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn, selective_scan_fn
from mamba_ssm.ops.triton.selective_state_update import selective_state_update
"""


def present() -> list[str]:
    """The packages that an import would find, whether they work or not. Imports nothing."""
    return [package for package in PACKAGES if find_spec(package)]


def status(env: dict[str, str] | None = None) -> tuple[str, str]:
    """("not installed", ""), ("installed", "") or ("broken", what their import says).

    The import runs in another process, since a broken build can take its process along; `env` is that of the process,
    where it is to find others than this one would.
    """
    if env is None:
        if not (found := present()):
            return "not installed", ""
        if missing := [package for package in PACKAGES if package not in found]:
            return "broken", f"{found[0]} is there without {missing[0]}"
    done = subprocess.run([sys.executable, "-c", IMPORTS], env=env, capture_output=True, text=True)
    if done.returncode == 0:
        return "installed", ""
    said = done.stderr.strip().splitlines()
    return "broken", said[-1] if said else f"their import ends the process ({done.returncode})"


# ---- who runs them ----------------------------------------------------------------------------------------------


def can_run_on(tensor) -> bool:
    """Whether the kernels can run on this tensor."""
    return tensor.is_cuda


def choose(on_gpu: Callable, on_cpu: Callable) -> Callable:
    """One function from two: the tensor that it gets first decides."""

    @functools.wraps(on_cpu)
    def by_device(*args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        return (on_gpu if can_run_on(first) else on_cpu)(*args, **kwargs)

    return by_device


def chosen(function: Callable, gpu: bool = True) -> Callable:
    """The code that a function of a modelling file comes down to, on a GPU or on a CPU."""
    while inspect.isfunction(function):
        inner = inspect.getclosurevars(function).nonlocals
        following = inner.get("on_gpu" if gpu else "on_cpu", inner.get("implementation"))
        if following is None:
            break
        function = following
    return function


def is_kernel(function: Callable) -> bool:
    """Whether this is code of the packages."""
    return (getattr(function, "__module__", None) or "").split(".")[0] in PACKAGES


def by_device(model=None) -> None:
    """From here on transformers' Mamba, FalconMamba and Jamba run the kernels on a GPU, their own reference on a CPU.

    For the whole process: functions of their modelling files are replaced, where kernels are. Where none are, the
    library's note about that goes unsaid, since `models.path` says it. MAMBA_KERNELS=off leaves the reference on a GPU
    too: a kernel is compared with the reference in two processes, one with it.

    Args:
        model: of another family that takes functions of the packages, such as Mamba-2; it is given the same choice.
    """
    logging.getLogger("transformers.integrations.hub_kernels").setLevel(logging.ERROR)
    if not present():
        return
    for family in FAMILIES:
        module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        for name in FUNCTIONS:
            _by_device(module, name)
    if model is not None:
        module = importlib.import_module(type(model).__module__)
        for name in [name for name, value in vars(module).items() if inspect.isfunction(value)]:
            _by_device(module, name)


def _by_device(module, name: str) -> None:
    """Put the choice by device in the place of a function of a modelling file, where a kernel is in it."""
    function = getattr(module, name)
    if is_kernel(chosen(function, gpu=False)):  # else there is no kernel in it, or it is chosen already
        reference = inspect.unwrap(function)
        off = os.environ.get("MAMBA_KERNELS") == "off"
        setattr(module, name, reference if off else choose(function, reference))
