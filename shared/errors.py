"""The course's own errors. Each message is one sentence: what happened, with numbers, and what to do next."""

import functools
from collections.abc import Callable
from contextlib import contextmanager


class CourseError(Exception):
    """An error that one sentence explains: a notebook shows that sentence and no stack of frames."""

    def _render_traceback_(self) -> list[str]:
        # IPython asks an exception for this before it renders a traceback of its own.
        return [f"{type(self).__name__}: {self}"]


class BadInput(CourseError, ValueError):
    """A name or a value that the course does not know."""


class NotEnoughMemory(CourseError):
    """The model does not fit into the memory that is free."""


class Missing(CourseError):
    """A model or a data set is neither on this machine nor within reach."""


class DiskFull(CourseError):
    """A download does not fit on the disk."""


class DamagedCheckpoint(CourseError):
    """The weights on disk are incomplete, or do not belong to the model."""


class ContextTooLong(CourseError):
    """More tokens than the model has positions for."""


def one_block(generator: Callable) -> Callable:
    """`contextlib.contextmanager` for what students call: what the call gives says so where it is entered again.

    contextlib raises an AttributeError there, about its own fields.
    """
    managed = contextmanager(generator)

    @functools.wraps(generator)
    def begin(*args, **kwargs) -> _Block:
        return _Block(managed(*args, **kwargs), generator.__name__)

    return begin


class _Block:
    """The object before and after the `as` of a with: it is entered once."""

    def __init__(self, inner, name: str):
        self._inner, self._name, self._entered = inner, name, False

    def __enter__(self):
        if self._entered:
            raise CourseError(
                f"One {self._name}(...) is for one block, and this one was entered before: call {self._name} again for "
                "the next."
            )
        self._entered = True
        return self._inner.__enter__()

    def __exit__(self, *error):
        if not self._entered:
            raise CourseError(f"{self._name}(...) was ended before its with began: write `with {self._name}(...):`.")
        return self._inner.__exit__(*error)
