"""A student's function as a check calls it: bounded in time, kept from leaving, its prints and its traces seen."""

import functools
import gc
import inspect
import io
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from types import SimpleNamespace

from shared.checks.compare import Wrong, as_tensor

TICK = 0.05  # seconds between two looks at a call's time
TOGETHER = 4  # times the seconds of one call
EXCUSED = 10.0  # seconds of imports and of collecting garbage that one call may have beside its own
PRINTED = 1_000_000  # characters that one call may print


class TimeUp(BaseException):
    """An answer that does not end. Not an Exception, so that an answer's own `except Exception` does not take it."""


class PrintedTooMuch(BaseException):
    """An answer that fills the memory with what it prints."""


class _Printed(io.StringIO):
    """A stream that keeps what is printed, up to `PRINTED` characters."""

    def write(self, text: str) -> int:
        if self.tell() + len(text) > PRINTED:
            raise PrintedTooMuch
        return super().write(text)


class Answer:
    """What a check calls in place of the student's function, with `own`, the course's, beside it.

    A call raises what the function raises, and `Wrong` where it does not end, leaves the check (SystemExit), writes
    into an argument that is not in `changes`, or leaves gradients switched off. An iterator comes back as a list.

    seconds: of the processor, and of waiting, that one call may take; all calls together may take `TOGETHER` times as
    long. changes: names of arguments that it may change.
    tensors: how many it gives; `other_types` tells whether some were none, or had another dtype than the arguments.
    """

    def __init__(
        self, function: Callable, own: Callable, seconds: float, changes: tuple[str, ...] = (), tensors: int = 0
    ):
        if not callable(function):
            raise Wrong(f"expected a function, got {function!r}.")
        self.function, self.own, self.seconds, self.changes = function, own, seconds, changes
        self.tensors, self.other_types = tensors, False
        self.left = TOGETHER * seconds
        self.printed = ""
        self.raised: BaseException | None = None
        functools.update_wrapper(self, own)

    def __call__(self, *args, **kwargs):
        import torch
        from IPython.utils.capture import capture_output

        before = {name: traces(value) for name, value in self._named(args, kwargs).items()}
        grad, kind = torch.is_grad_enabled(), torch.get_default_dtype()
        seen, spent = _Printed(), []
        try:
            with (
                capture_output(stderr=False),
                redirect_stdout(seen),
                bounded(min(self.seconds, self.left)) as spent,
                interrupts() as interrupted,
            ):
                result = self.function(*args, **kwargs)
                self.other_types |= bool(self.tensors) and not _tensors_like(
                    result, self.tensors, (*args, *kwargs.values())
                )
                result = list(result) if isinstance(result, Iterator) else result
        except TimeUp as late:
            raise Wrong(f"the function did not end: {late}. Does a loop, or a wait, never come to its end?") from None
        except PrintedTooMuch:
            raise Wrong(f"the function printed more than {PRINTED:,} characters: print less, or nothing.") from None
        except KeyboardInterrupt:
            if interrupted:
                raise
            raise Wrong("your code raised KeyboardInterrupt, which would have stopped the whole lab.") from None
        except Exception as error:
            self.raised = error
            raise
        except BaseException as error:
            left = f"{type(error).__name__}, which would have ended the kernel"
            raise Wrong(f"your code raised {left}: give the result back with return.") from None
        finally:
            self.left = max(self.left - sum(spent), TICK)
            self.printed += seen.getvalue()
            stayed = torch.is_grad_enabled(), torch.get_default_dtype()
            torch.set_grad_enabled(grad)
            torch.set_default_dtype(kind)
        if stayed != (grad, kind):
            raise Wrong("a setting of torch stayed changed (gradients or the default type): use a with statement.")
        for name, value in self._named(args, kwargs).items():
            if (fault := changed(before[name], traces(value))) and name not in self.changes:
                raise Wrong(f"the argument `{name}` {fault}")
        return result

    def _named(self, args: tuple, kwargs: dict) -> dict[str, object]:
        try:
            return dict(inspect.signature(self.own).bind(*args, **kwargs).arguments)
        except TypeError:
            return {str(number): value for number, value in enumerate(args)} | kwargs


def as_tensors(function: Callable, number: int) -> Callable:
    """A function that gives what another one gives as that number of tensors, like its first floating argument."""

    @functools.wraps(function)
    def converted(*args, **kwargs):
        result = function(*args, **kwargs)
        result = list(result) if isinstance(result, Iterator) else result
        parts = [
            as_tensor(part).to(_first_floating((*args, *kwargs.values())))
            for part in ([result] if number == 1 else result)
        ]
        return parts[0] if number == 1 else tuple(parts)

    return converted


def _first_floating(args: tuple):
    import torch

    return next(a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point())


def _tensors_like(result: object, number: int, args: tuple) -> bool:
    import torch

    parts = [result] if number == 1 or isinstance(result, torch.Tensor) else result
    return isinstance(parts, (list, tuple)) and all(
        isinstance(part, torch.Tensor) and part.dtype == _first_floating(args).dtype for part in parts
    )


# ---- time --------------------------------------------------------------------------------------------------------


@contextmanager
def bounded(seconds: float):
    """Raise `TimeUp` in the block once it has worked, or has done nothing but wait, for so long. Yields what it took.

    The processor's time of this thread counts, not the clock's: beside other work nothing ends sooner. Waiting is
    counted in looks at which the thread has not worked since the last one. Imports are not counted, nor are
    collections of garbage, which walk through all that the kernel holds. Outside the main thread there is no bound,
    since Python handles signals in that thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    spent: list[float] = []  # at the end: seconds of work and of waiting
    begun = last = collecting = time.thread_time()
    excused = 0.0
    waits = told = 0

    def work() -> float:
        return time.thread_time() - begun - min(excused, EXCUSED)

    def collected(phase, info):
        nonlocal excused, collecting
        if phase == "start":
            collecting = time.thread_time()
        else:
            excused += time.thread_time() - collecting

    def look(number, frame):
        nonlocal excused, last, waits, told
        if _collecting(frame):
            frame, told = frame.f_back, max(told, 1)
        now = time.thread_time()
        if _importing(frame):
            excused += now - last
        elif now - last < TICK / 50:
            waits += 1
        last = now
        worked, waited = work(), waits * TICK
        if max(worked, waited) > seconds:
            told += 1
            said = f"{worked:.1f} s of work" if worked > waited else f"{waited:.1f} s of waiting"
            _stop(frame, TimeUp(f"it was stopped after {said}"), told)

    tracing = sys.gettrace()
    before = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
    gc.callbacks.append(collected)
    try:
        yield spent
    finally:
        gc.callbacks.remove(collected)
        spent += [work(), waits * TICK]
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.settrace(tracing)


def _stop(frame, error: TimeUp, times: int) -> None:
    """Raise the error in a frame; from the second time on, where an `except:` took it, some lines further on."""
    if times == 1:
        raise error
    lines = times % 20

    def later(frame, event, argument):
        nonlocal lines
        if _collecting(frame):
            return None
        lines -= 1
        if lines < 0:
            raise error
        return later

    frame.f_trace = later
    sys.settrace(later)


def _collecting(frame) -> bool:
    """Whether a frame is of a callback of the garbage collector. What is raised there, Python prints and drops."""
    return any(frame.f_code is getattr(callback, "__code__", None) for callback in gc.callbacks)


def _importing(frame) -> bool:
    while frame:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


@contextmanager
def interrupts():
    """A list that is empty until somebody presses Ctrl-C or the kernel's stop button in the block."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number, frame):
        came.append(number)
        raise KeyboardInterrupt

    if callable(before):
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield came
    finally:
        if callable(before):
            signal.signal(signal.SIGINT, before)


# ---- traces ------------------------------------------------------------------------------------------------------


def copied(value):
    """A copy that an answer may spoil: tensors, arrays, modules, tables and what holds them; all else as it is."""
    import copy

    import numpy as np
    import pandas as pd
    import torch

    if isinstance(value, torch.Generator):
        return torch.Generator(value.device).set_state(value.get_state())
    if isinstance(value, torch.Tensor):  # with its strides: what is no contiguous tensor in a lab is none in a check
        return copy.deepcopy(value.detach()).requires_grad_(value.requires_grad)
    if isinstance(value, (torch.nn.Module, np.ndarray, np.random.Generator, pd.DataFrame, pd.Series)):
        return copy.deepcopy(value)
    if isinstance(value, SimpleNamespace):
        return SimpleNamespace(**copied(vars(value)))
    if type(value) in (list, tuple, set):
        return type(value)(map(copied, value))
    if type(value) is dict:
        return {key: copied(part) for key, part in value.items()}
    return value


def traces(value) -> object:
    """What of an argument must be the same after a call, as nested dicts of copies. None for what cannot be told."""
    import numpy as np
    import pandas as pd
    import torch

    if isinstance(value, torch.nn.Module):
        return {"": "model", "parts": {n: _of_module(m) for n, m in value.named_modules()}} | {
            "values": {n: t.detach().clone() for n, t in _tensors_of(value)},
            "trained": {n: p.requires_grad for n, p in value.named_parameters()},
            "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in value.named_parameters()},
        }
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, pd.DataFrame, pd.Series)):
        return value.copy()
    if isinstance(value, SimpleNamespace):
        return traces(vars(value))
    if isinstance(value, (list, tuple)):
        return {number: traces(part) for number, part in enumerate(value)}
    if isinstance(value, Mapping):
        return {key: traces(part) for key, part in value.items()}
    return value if isinstance(value, (int, float, str, bytes, set, frozenset)) else None


def _tensors_of(module):
    yield from module.named_parameters()
    yield from module.named_buffers()


def _of_module(module) -> tuple:
    hooks = [module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks]
    for parameter in module.parameters(recurse=False):
        hooks += [parameter._backward_hooks or (), parameter._post_accumulate_grad_hooks or ()]
    return module.training, (*map(tuple, hooks), module.forward)


def changed(before: object, after: object) -> str | None:
    """What has become of an argument, by its `traces` before and after; None where it is as it was."""
    if not isinstance(before, dict) or before.get("") != "model":
        return None if _same(before, after) else "was changed, and others still need it: work on a copy."
    if before["values"].keys() != after["values"].keys():
        return "has got other parts than before: the model is others' too, so leave it as it was."
    for name, part in before["parts"].items():
        mode, hooks = after["parts"].get(name, part)
        if hooks != part[1]:
            return "still has a hook on it, or a forward of yours: remove each one when done, also after an error."
        if mode != part[0]:
            return f"was left in another mode: {'train' if part[0] else 'eval'}() was on when it came."
    if not _same(before["values"], after["values"]):
        return "has other weights than before: leave them as they were."
    if not _same(before["trained"], after["trained"]):
        return "has other parameters with requires_grad than before: leave them as they were."
    if not _same(before["gradients"], after["gradients"]):
        return "has gradients left behind: the next step would add to them. Call zero_grad at the end."
    return None


def _same(before: object, after: object) -> bool:
    import numpy as np
    import torch

    if isinstance(before, dict):
        return (
            isinstance(after, dict)
            and before.keys() == after.keys()
            and all(_same(part, after[key]) for key, part in before.items())
        )
    if isinstance(before, torch.Tensor):
        alike = isinstance(after, torch.Tensor) and before.shape == after.shape and before.dtype == after.dtype
        return alike and torch.allclose(before, after, rtol=0, atol=0, equal_nan=True)
    if isinstance(before, np.ndarray):
        return np.array_equal(before, after, equal_nan=before.dtype.kind == "f")
    if hasattr(before, "equals"):
        return before.equals(after)
    return type(before) is type(after) and (before == after or before != before)


def line_of(error: BaseException, function: Callable) -> int | None:
    """The line of the function's own cell in which it raised an error, or called what raised it."""
    file = getattr(inspect.unwrap(function), "__code__", SimpleNamespace(co_filename=None)).co_filename
    line, trace = None, error.__traceback__
    while trace:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    return line


def raised_by_itself(error: BaseException, function: Callable) -> bool:
    """Whether the function's own code raised an error, as a stub does, and not something that it called."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    own = getattr(inspect.unwrap(function), "__code__", None)
    return own is None or trace.tb_frame.f_code.co_filename == own.co_filename
