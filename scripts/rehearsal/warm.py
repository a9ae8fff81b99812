"""Kernels that are forks of a process that has imported what labs import: each run would take seconds for that anew."""

import asyncio
import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from unittest.mock import patch

from shared import notebooks

# Between them they bring torch, transformers, peft, matplotlib and the kernel's own program.
IMPORTED = ["ipykernel.kernelapp", "papermill", "datasets", "shared.evaluate", "shared.plots"]
IMPORTED += ["shared.kits.finetune", "shared.kits.lab", "shared.kits.tasks"]


def execute(lab: str, folder: Path, numbers: dict, parameters: dict[str, str], env: dict[str, str]) -> notebooks.Run:
    """`notebooks.execute` at scale full, on a kernel that is a fork and has these variables.

    What the libraries read while they are imported, such as a hub's address, is what the first call had.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with patch.dict(os.environ, env, clear=True):
        forkserver.ensure_running()
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_execute, lab, folder, numbers, parameters, env).result()


def _execute(lab: str, folder: Path, numbers: dict, parameters: dict[str, str], env: dict[str, str]) -> notebooks.Run:
    with patch.dict(os.environ, env, clear=True):
        return notebooks.execute(lab, "full", folder=folder, numbers=numbers, kernel=forked(), **parameters)


@functools.cache
def forked() -> type:
    """The class of kernels that are forks of this process."""

    class Forked(notebooks.kernel_manager()):
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
