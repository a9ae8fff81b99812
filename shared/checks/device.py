"""Devices that only exist in a check: they queue work, as a GPU does."""

import math
import time
from dataclasses import dataclass

CALL = 0.001  # seconds that a call takes, whatever it queues
CLOSE = 1e-4  # seconds by which two clocks may differ over some milliseconds


@dataclass
class Call:
    """A piece of work: when it was asked for, and when somebody who waited knew that it was done."""

    begun: float
    done: float = math.inf


class Accelerator:
    """Calls return soon and leave work in a queue, as on a GPU; `synchronize` waits until it is done.

    Real time passes, so any clock may measure it. `calls` says when each piece of work was asked for and waited for,
    and `span` what a clock that is read at the right places can show. That holds however busy the machine is.
    """

    def __init__(self):
        self.calls: list[Call] = []
        self.made = self.free = time.perf_counter()

    def work(self, seconds: float) -> None:
        now = time.perf_counter()
        self.free = max(self.free, now) + seconds
        self.calls.append(Call(now))
        time.sleep(CALL)

    def synchronize(self) -> None:
        while (left := self.free - time.perf_counter()) > 0:
            time.sleep(left)
        now = time.perf_counter()
        for call in self.calls:
            call.done = min(call.done, now)

    def waited(self, number: int) -> bool:
        """Whether the device was known to be idle when a call began."""
        return number == 0 or self.calls[number - 1].done <= self.calls[number].begun

    def span(self, first: int, last: int) -> tuple[float, float]:
        """The least and the most seconds that a right clock can show for the calls from `first` to `last`.

        It starts when the device is idle and the first call has not begun, and stops when the last one is done and
        the next one has not begun. The least is inf where nobody waited for the last, the most is negative where
        nobody waited before the first.
        """
        idle = self.calls[first - 1].done if first else self.made
        after = self.calls[last + 1].begun if last + 1 < len(self.calls) else time.perf_counter()
        most = after - idle if self.waited(first) else -math.inf
        return self.calls[last].done - self.calls[first].begun - CLOSE, most + CLOSE
