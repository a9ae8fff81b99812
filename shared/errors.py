"""The course's own errors. Each message is one sentence: what happened, with numbers, and what to do next."""


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
