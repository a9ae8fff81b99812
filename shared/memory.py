"""How much memory is free, how much a piece of code takes, and how much a model's cache holds.

What is free is counted in `machine.pool`, how a level is read in `machine.meters`. All sizes are bytes, and `human`
prints them in decimal units: GB = 1e9 bytes.
"""

import signal
import sys
import threading
import time
from dataclasses import dataclass, fields
from types import SimpleNamespace

from shared.errors import CourseError
from shared.machine import guard, meters, pool
from shared.machine.meters import held
from shared.machine.pool import available, pick_device
from shared.units import human

__all__ = ["CacheBytes", "Tracker", "available", "cache_bytes", "held", "human", "pick_device", "track"]

# The processor time that the thread which samples a block may take, as a share of the block's time: where the machine
# keeps an exact peak, and where the samples are the peak.
SHARE = {True: 0.003, False: 0.008}


# ------------------------------------------------------------------------------------------------- what code takes


# Ctrl-C, what the guard sends, and what programs give a handler to that raises: wherever the program stands.
STOPS = (signal.SIGINT, guard.SIGNAL, signal.SIGTERM, signal.SIGALRM)


class Tracker:
    """What `track` hands out. All its figures are bytes above the level at entry."""

    def __init__(self, meter, interval: float):
        self._meter, self._interval = meter, interval
        self._phase, self._peaks, self._samples = "start", {}, []
        self._over, self._watching = False, threading.Lock()
        self._watching.acquire()
        self._thread = threading.Thread(target=self._watch, name="memory.track", daemon=True)
        self._handlers, self._late = {}, []

    def __enter__(self) -> "Tracker":
        if self._samples:
            raise CourseError("A tracker watches one block, once: call memory.track() again for the next.")
        try:
            self._hear()
            self._meter.settle()
            with _lock:
                _settle_peak(self._meter)
                self._start, self._entry = time.perf_counter(), self._meter.level()
                _active.append(self)
                self._sample()
            self._thread.start()
            while self._late:
                self._handlers[number := self._late.pop()](number, sys._getframe(1))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_) -> None:
        try:
            if not self._over:
                self._sample(settle_peak=True)
        finally:
            self._end()
        while self._late:
            self._handlers[number := self._late.pop()](number, sys._getframe(1))

    def _end(self) -> None:
        self._over = True
        with _lock:
            if self in _active:
                _active.remove(self)
        if self._watching.locked():
            self._watching.release()
        if self._thread.is_alive():
            self._thread.join()
        # A generator may be closed in another thread, which cannot set a handler: `_hold` then stays, and passes on.
        here = threading.current_thread() is threading.main_thread()
        for number, handler in self._handlers.items() if here else ():
            if signal.getsignal(number) == self._hold:
                signal.signal(number, handler)

    def _hear(self) -> None:
        """Until the end, hear the signals that raise before whoever else does."""
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                if callable(handler := signal.getsignal(number)):
                    self._handlers[number] = handler
                    signal.signal(number, self._hold)

    def _hold(self, number: int, frame) -> None:
        """Pass a signal on, but not amid entry and exit: there it waits until all is in order."""
        here = frame
        while here:
            if here.f_code in _WHOLE and here.f_locals.get("self") is self:
                self._late.append(number)
                return
            here = here.f_back
        self._handlers[number](number, frame)

    @property
    def peak_bytes(self) -> int:
        """The most that was taken at once since entry."""
        return max(self.phases().values())

    def mark(self, phase: str) -> None:
        """Call what follows `phase`, until the next mark."""
        self._check_entered()
        with _lock:
            self._sample()
            self._meter.settle()  # or what this phase freed and the heap kept would count for the next one
            _settle_peak(self._meter)
            self._phase = phase
            self._sample()

    def phases(self) -> dict[str, int]:
        """The peak of each phase, in the order in which they began."""
        self._check_entered()
        if not self._over:
            self._sample(settle_peak=True)
        return {phase: max(0, peak - self._entry) for phase, peak in self._peaks.items()}

    def timeline(self):
        """DataFrame with one row per sample: seconds since entry, bytes, phase."""
        import pandas as pd

        rows = [(seconds, level - self._entry, phase) for seconds, level, phase in list(self._samples)]
        return pd.DataFrame(rows, columns=["seconds", "bytes", "phase"])

    def _check_entered(self) -> None:
        if not self._samples:
            raise CourseError("Nothing was tracked: put the code into the block of `with memory.track() as m:`.")

    def _note(self, level: int) -> None:
        self._peaks[self._phase] = max(level, self._peaks.get(self._phase, 0))

    def _sample(self, settle_peak: bool = False) -> None:
        with _lock:
            self._note(level := self._meter.level())
            self._samples.append((time.perf_counter() - self._start, level, self._phase))
            if settle_peak:
                _settle_peak(self._meter)

    def _watch(self) -> None:
        pause = self._interval
        while not self._watching.acquire(timeout=pause):  # a lock costs a fraction of what an Event does
            self._sample()
            elapsed = time.perf_counter() - self._start
            # Waking up costs many times what reading does, and what depends on the machine: so it is measured.
            pause = max(self._interval, time.thread_time() / SHARE[self._meter.exact] - elapsed)
            if self._meter.exact:
                pause = max(pause, elapsed / 1000)  # or the samples of hours would show in what they sample


_WHOLE = {Tracker.__enter__.__code__, Tracker.__exit__.__code__}
_lock = threading.RLock()
_active: list[Tracker] = []


def _settle_peak(meter) -> None:
    """Credit the high-water mark to every tracker that shares it, then start it anew: nested trackers reset it too."""
    peak = meter.peak()
    for tracker in _active:
        if type(tracker._meter) is type(meter) and tracker._meter.device == meter.device:
            tracker._note(peak)
    meter.reset()


def track(device=None, interval: float = 0.005) -> Tracker:
    """Watch the memory that the block takes on `device` (default: the GPU if there is one, else the CPU).

    A thread samples the level every `interval` seconds, or as often as it can within 0.3 % of the block's time: where a
    sample costs 100 microseconds, every 33 milliseconds. Where the machine keeps an exact peak (Linux RSS, torch's CUDA
    allocator), that is the peak. Elsewhere the largest sample is, and samples may take 0.8 %: what comes and goes
    between two of them is missed. On unified memory that is resident memory alone, because torch keeps what it has
    reserved on the GPU.
    At entry and at each mark garbage is collected and freed heap given back. That is no part of what follows, but takes
    a tenth of a second where many objects live: do not time across it.
    While the block lasts, signals that raise (Ctrl-C) pass through a handler of the tracker, which holds them back amid
    entry and exit; their own handlers are put back.
    Resident memory counts pages that were touched: `torch.empty` alone takes nothing, and the pages of a memory-mapped
    checkpoint count once they are read. On unified memory `guard.watch` runs from the first call on.

    >>> with memory.track() as m:
    ...     m.mark("prefill")
    ...     model(input_ids)
    >>> m.peak_bytes, m.phases(), m.timeline()
    """
    device = pool.present_device(device)
    meter: meters.Host | meters.Cuda | meters.Unified
    if device.type != "cuda":
        meter = meters.Host()
    elif pool.is_unified(device):
        meter = meters.Unified(device)
    else:
        meter = meters.Cuda(device)
    if pool.is_unified(device):
        guard.watch()
    return Tracker(meter, interval)


# ------------------------------------------------------------------------------------------------ what a cache holds


@dataclass(frozen=True)
class CacheBytes:
    """Bytes in a model's cache, by kind.

    kv: keys and values, of layers that keep every token. conv, recurrent: convolution and recurrent (SSM) states.
    window: keys and values of layers that keep the last tokens alone. latent: what MLA keeps in the place of keys and
    values. index: everything else, such as the keys by which sparse attention chooses what it reads.
    """

    kv: int = 0
    conv: int = 0
    recurrent: int = 0
    window: int = 0
    latent: int = 0
    index: int = 0

    @property
    def growing(self) -> int:
        """What attention reads of earlier tokens."""
        return self.kv + self.window + self.latent

    @property
    def total(self) -> int:
        return self.growing + self.conv + self.recurrent + self.index


def cache_bytes(cache) -> CacheBytes:
    """Count the tensors in a transformers `Cache` (attention, Mamba or both), each once, as elements times their size.

    Args:
        cache: `outputs.past_key_values`, or `outputs.cache_params` for a pure Mamba model.
    """
    seen: set[int] = set()
    layers = [layer_bytes(layer, seen) for layer in cache_layers(cache)]
    return CacheBytes(**{kind.name: sum(getattr(layer, kind.name) for layer in layers) for kind in fields(CacheBytes)})


def cache_layers(cache) -> list:
    """The layers of a transformers `Cache`, whose attributes are what it holds. TypeError for what is none."""
    if hasattr(cache, "self_attention_cache"):  # of a decoder that can also look at an encoder
        return cache_layers(cache.self_attention_cache) + cache_layers(cache.cross_attention_cache)
    if not hasattr(cache, "layers"):
        raise TypeError(
            f"cache_bytes needs the cache of a model's output and got {type(cache).__name__}: "
            "call the model with use_cache=True and pass its past_key_values (cache_params for Mamba)."
        )
    layers = list(cache.layers)
    # MiniMax keeps the states of its linear attention beside the layers; those in their places hold nothing.
    for index, state in enumerate(getattr(cache, "linear_cache", ())):
        if len(state):
            layers[index : index + 1] = [SimpleNamespace(recurrent_states={0: state})]
    return layers


def layer_bytes(layer, seen: set[int] | None = None) -> CacheBytes:
    """Count the tensors of one layer of a cache, without those whose id is in `seen`; they are added there."""
    seen = set() if seen is None else seen
    held = vars(layer)

    def count(*names: str) -> int:
        found = [tensor for name in names for tensor in _tensors(held.get(name))]
        new = {id(tensor): tensor.numel() * tensor.element_size() for tensor in found if id(tensor) not in seen}
        seen.update(new)
        return sum(new.values())

    keys, values = held.get("keys"), held.get("values")
    # MLA keeps one vector for all heads, and beside it a shorter one with positions, in the place of keys and values.
    one_head = keys is not None and values is not None and keys.dim() == 4 and keys.shape[1] == 1
    if getattr(layer, "is_sliding", False):
        kind = "window"
    elif one_head and keys.shape[-1] != values.shape[-1]:
        kind = "latent"
    else:
        kind = "kv"
    counts = {kind: count("keys", "values"), "conv": count("conv_states"), "recurrent": count("recurrent_states")}
    return CacheBytes(**counts, index=count(*held))


def _tensors(value):
    """The tensors in an attribute of a layer; a single number, such as a length, is no state."""
    if isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
    elif getattr(value, "ndim", 0) > 0:
        yield value
