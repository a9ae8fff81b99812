"""A process that has imported what labs import, and forks of it: each run would take seconds for that anew.

with warm.process(env) as worker:
    worker.submit(warm.execute, "2.4.5", folder, numbers, parameters)   # on a kernel that is a fork
    worker.submit(warm.in_a_fork, function, argument)
"""

import asyncio
import functools
import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from unittest.mock import patch

import pandas
from tqdm import tqdm

from shared import files, models, notebooks
from shared.models.cards import CONFIGS, MODELS

# Between them they bring torch, transformers, peft, matplotlib and the kernel's own program.
IMPORTED = ["shared.notebooks", "ipykernel.kernelapp", "papermill", "datasets", "shared.evaluate", "shared.plots"]
IMPORTED += ["shared.kits.finetune", "shared.kits.lab", "shared.kits.tasks"]


@contextmanager
def process(env: dict[str, str], imported: list[str] = IMPORTED) -> Iterator[ProcessPoolExecutor]:
    """A process with these variables, from the start, that does what is submitted to it, one after another."""
    with patch.dict(os.environ, env, clear=True):
        worker = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), prepare, (imported,))
        worker.submit(os.getpid).result()  # so that it has started
    with worker:
        yield worker


def prepare(modules: list[str] = IMPORTED) -> None:
    """Import modules, and with those of labs transformers' code of every model that labs count."""
    for module in modules:
        importlib.import_module(module)
    if modules == IMPORTED:
        for name in (*MODELS, *CONFIGS):
            models.size(name)
    pandas.set_option("display.max_columns", 20)  # as in a kernel; outside of one it counts the terminal's columns
    tqdm.get_lock()  # made here once; a fork that made its own would leave a semaphore behind


def in_a_fork(function: Callable, *arguments):
    """What a function returns in a fork of this process."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments)


def shell():
    """An IPython shell in the labs' folder, without a history: for one lab, in a fork of this process."""
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    os.chdir(files.LABS)
    config = Config()
    config.HistoryManager.enabled = False
    return InteractiveShell.instance(colors="nocolor", config=config)


def execute(lab: str, folder: Path, numbers: dict, parameters: dict[str, str]) -> notebooks.Run:
    """`notebooks.execute` at scale full, on a kernel that is a fork of this process."""
    return notebooks.execute(lab, "full", folder=folder, numbers=numbers, kernel=forked(), **parameters)


@functools.cache
def forked(manager: type | None = None) -> type:
    """The class of kernels that are forks of this process; manager: papermill's, or another of Jupyter's classes."""

    class Forked(manager or notebooks.kernel_manager()):
        async def _async_launch_kernel(self, command, **options):
            start = functools.partial(_be_kernel, command[3:], options["env"])  # without python -m ipykernel_launcher
            await super()._async_launch_kernel(command, preexec_fn=start, **options)

    return Forked


def _be_kernel(arguments: list[str], env: dict[str, str]) -> None:
    """Between the fork and the program that was to be started: be the kernel, in the place of starting it."""
    tracked = resource_tracker.getfd()  # closed, it would warn at the end
    os.closerange(3, tracked)  # with the pipe on which subprocess waits for the program's start
    os.closerange(tracked + 1, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(env)
    asyncio.set_event_loop(asyncio.new_event_loop())
    code = 1
    try:
        from ipykernel import kernelapp

        # A kernel without a parent says how to connect to it.
        kernelapp.launch_new_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
        code = 0
    finally:
        os._exit(code)
