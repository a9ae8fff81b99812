"""A device that only exists in a check: it queues work, and the clock that the student reads is its own."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

CLOCKS = ("perf_counter", "time", "monotonic", "process_time")
CALL = 0.001  # seconds that a call takes, whatever it queues


class Device:
    """Calls return at once and leave work in the queue, as on a GPU; `synchronize` waits until it is done.

    No real time passes, so a check that measures seconds takes none.
    """

    def __init__(self, queue: float = 0.0):
        """queue: seconds of work from before."""
        self.now, self.queue = 100.0, queue

    def work(self, seconds: float) -> None:
        self.now += CALL
        self.queue += seconds

    def synchronize(self) -> None:
        self.now += self.queue
        self.queue = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Inside, the functions of `time` read this device's clock."""
        with ExitStack() as patches:
            for name in CLOCKS:
                patches.enter_context(patch.object(time, name, lambda: self.now))
            yield
