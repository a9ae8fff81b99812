"""Execute labs with papermill, each on a fresh kernel in a process of its own."""

import functools
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from shared import files
from shared.errors import BadInput, CourseError
from shared.machine.process import end_with
from shared.notebooks import record
from shared.notebooks.notice import passed
from shared.notebooks.record import Run
from shared.notebooks.source import change_settings, check_scale, missing, path_of, read, solve, tagged, text

EXECUTED = files.BUILD / "executed"


def execute(
    lab: str,
    scale: str = "tiny",
    solved: bool = True,
    folder: Path | None = None,
    numbers: dict | None = None,
    kernel: type | None = None,
    **parameters,
) -> Run:
    """Execute a lab with papermill on a fresh kernel and write it to `folder` (default build/executed).

    Further keyword arguments set values of the lab's `parameters` cell; an unknown one is an error (papermill only
    warns). A failing cell does not raise: the run carries its error, and the notebook is written as far as it came.
    Nor does something missing: the run carries the first sentence about it, and cells that do not need it have run.

    Args:
        numbers: in the place of some in the settings of this scale, such as {"contexts": (64, 128)}: a shorter run.
        kernel: the class that starts and ends the kernel; default `kernel_manager()`.
    """
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError

    papermill.engines.papermill_engines.register("saved at its end", engine())
    check_scale(scale)
    notebook = solve(lab) if solved else read(lab)
    parameters = {"SCALE": scale, **parameters}
    cells = tagged(notebook, "parameters")
    if len(cells) != 1:
        raise BadInput(f"Lab {lab} has {len(cells)} cells tagged `parameters`; it needs exactly one.")
    known = re.findall(r"^(\w+) *=", cells[0].source, flags=re.MULTILINE)
    if unknown := set(parameters) - set(known):
        raise BadInput(f"Lab {lab} has no parameter {', '.join(sorted(unknown))}; it has {', '.join(known)}.")
    if numbers:
        change_settings(notebook, scale, numbers)

    made_from = record.made_from(notebook, parameters)
    folder = folder or EXECUTED
    out = folder / path_of(lab).name
    ends_with_us = f"__import__('shared.machine.process').machine.process.end_with({os.getpid()})"
    solves_for_nobody = "__import__('os').environ['COURSE_PROGRESS'] = 'off'"
    start, error = time.perf_counter(), ""
    with files.replacing(out) as part:  # a run that is interrupted leaves the last whole one in its place
        try:
            papermill.execute_notebook(
                notebook,
                part,
                parameters,
                kernel_name="python3",
                kernel_manager_class=kernel or kernel_manager(),
                engine_name="saved at its end",
                cwd=files.LABS,
                progress_bar=sys.stderr.isatty(),
                extra_arguments=[
                    "--IPKernelApp.log_level=40",  # errors only: it warns that localhost is not encrypted
                    f"--IPKernelApp.exec_lines={ends_with_us}",
                    f"--IPKernelApp.exec_lines={solves_for_nobody}",
                ],
            )
        except papermill.PapermillExecutionError as failed:
            error = f"{failed.ename}: {failed.evalue}".splitlines()[0]
        except DeadKernelError:
            error = "the kernel died, most likely for lack of memory: close other notebooks and run this lab again"
        seconds = time.perf_counter() - start
        # ru_maxrss of the children: the kernel is the only child that has ended (kilobytes on Linux, bytes on a Mac).
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        executed = nbformat.read(part, as_version=4)
        verdicts = [text(cell) for cell in tagged(executed, "check")]
        error = error or next(missing(executed), "")
        run = Run(lab, out, seconds, peak, sum(map(passed, verdicts)), len(verdicts), error, scale, **made_from)
        record.note(executed, run)
        nbformat.write(executed, part)
    return run


@functools.cache
def engine() -> type:
    """Papermill's own, which writes the notebook when it ends, also by the death of its kernel.

    Its parent writes the whole notebook before and after each cell, figures and all.
    """
    from papermill.engines import NBClientEngine

    class Engine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, nb_man, kernel_name, **kwargs):
            path, nb_man.output_path = nb_man.output_path, None
            try:
                super().execute_managed_notebook(nb_man, kernel_name, **kwargs)
            finally:
                nb_man.output_path = path

    return Engine


@functools.cache
def kernel_manager() -> type:
    """Jupyter's own class, but a kernel that is to end is not interrupted first: it would log that as an error."""
    from jupyter_client import AsyncKernelManager

    class Manager(AsyncKernelManager):
        async def _async_interrupt_kernel(self):
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    return Manager


def execute_apart(lab: str, scale: str) -> Run:
    """`execute` in a new process, which ends with this one: the peak memory of a lab is that of its own kernel alone.

    On Ctrl-C it is ended with its kernel, and its unfinished notebook is deleted.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _worker, (os.getpid(),)) as pool:
        # The worker hears Ctrl-C too. Until it can leave the answer to this process, it waits.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            running = pool.submit(execute, lab, scale)
            workers = multiprocessing.active_children()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        try:
            return running.result()
        except BrokenProcessPool:
            raise CourseError(
                f"The process that ran lab {lab} was killed, most likely for lack of memory: close other notebooks, "
                "then run this again."
            ) from None
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
            for worker in workers:
                worker.kill()
                worker.join()
                files.remove_parts(EXECUTED, worker.pid.__eq__)
            raise


def _worker(parent: int) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, lambda *_: None)  # a handler, not SIG_IGN: its kernel would inherit that
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
