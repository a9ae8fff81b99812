"""What is free, what code takes and what a cache holds. The CPU is real; GPUs are played by their answers."""

import gc
import os
import random
import signal
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from played import RECORDED

from shared import memory, models
from shared.errors import BadInput, CourseError
from shared.machine import holders, meters, pool

MB = 1_000_000

MEMINFO_LAPTOP = "MemTotal:       16000000 kB\nMemFree:         1000000 kB\nMemAvailable:    8000000 kB\n"


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A Linux machine whose files can be written: /proc/meminfo, /proc/self and /sys/fs/cgroup."""
    files = SimpleNamespace(meminfo=tmp_path / "meminfo", process=tmp_path / "self", cgroups=tmp_path / "cgroup")
    files.meminfo.write_text(MEMINFO_LAPTOP)
    files.process.mkdir()
    files.cgroups.mkdir()
    monkeypatch.setattr(pool, "MEMINFO", files.meminfo)
    monkeypatch.setattr(pool, "CGROUPS", files.cgroups)
    monkeypatch.setattr(meters, "PROCESS", files.process)
    return files


# ---------------------------------------------------------------------------------------------------------- available


def test_available_on_a_cpu_is_what_the_kernel_calls_available(host):
    assert pool.available("cpu") == 8_000_000 * 1024


@pytest.mark.parametrize(
    ("file", "device", "integrated", "available"),
    [
        ("cpu-container", "cpu", 0, 21_195_092 * 1024),
        ("discrete-gpu", "cuda", 0, 70_000 * MB),  # what CUDA says; the host's memory is another matter
        ("discrete-gpu", "cpu", 0, 498_765_432 * 1024),
        ("unified", "cuda", 1, 101_234_567 * 1024),  # what the kernel says
        ("unified", "cpu", 1, 101_234_567 * 1024),
    ],
)
def test_available_is_right_on_each_kind_of_machine(host, gpu, file, device, integrated, available):
    host.meminfo.write_text((RECORDED / f"{file}.txt").read_text())
    gpu.integrated, gpu.free = integrated, 70_000 * MB
    assert pool.available(device) == available
    assert pool.is_unified(device) == (integrated == 1 and device == "cuda")


def test_available_on_a_discrete_gpu_adds_what_torch_keeps_but_does_not_use(gpu):
    gpu.free, gpu.reserved, gpu.allocated = 20_000 * MB, 5_000 * MB, 2_000 * MB
    assert pool.available() == pool.available("cuda") == 23_000 * MB


def test_available_on_unified_memory_counts_page_cache_as_free(host, gpu):
    host.meminfo.write_text((RECORDED / "unified.txt").read_text())
    gpu.integrated, gpu.free = 1, 9_012_345 * 1024  # CUDA's answer is MemFree: eleven times too little
    assert pool.available() == 101_234_567 * 1024


def test_available_on_unified_memory_ignores_swap_and_the_containers_limit(host, gpu):
    host.meminfo.write_text((RECORDED / "unified.txt").read_text())
    (host.process / "cgroup").write_text("0::/\n")
    (host.cgroups / "memory.max").write_text(f"{4_000 * MB}\n")
    (host.cgroups / "memory.current").write_text("0\n")
    gpu.integrated = 1
    assert pool.available("cuda") == 101_234_567 * 1024
    assert pool.available("cpu") == 4_000 * MB


@pytest.mark.parametrize("inside", [True, False], ids=["path visible", "only the root visible, as in a container"])
def test_available_obeys_a_version_2_limit_and_counts_its_page_cache_as_free(host, inside):
    folder = host.cgroups / "docker" / "abc" if inside else host.cgroups
    folder.mkdir(parents=True, exist_ok=True)
    (host.process / "cgroup").write_text("0::/docker/abc\n")
    (folder / "memory.max").write_text(f"{3_000 * MB}\n")
    (folder / "memory.current").write_text(f"{1_000 * MB}\n")
    (folder / "memory.stat").write_text(f"anon 1\nfile 2\ninactive_file {400 * MB}\n")
    assert pool.available("cpu") == 2_400 * MB


def test_available_obeys_the_tightest_limit_on_the_way_to_the_root(host):
    (host.process / "cgroup").write_text("0::/user/session\n")
    for folder, limit in ((host.cgroups / "user", 2_000 * MB), (host.cgroups / "user" / "session", "max")):
        folder.mkdir()
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{500 * MB}\n")
    assert pool.available("cpu") == 1_500 * MB


def test_available_obeys_a_version_1_limit(host):
    (host.process / "cgroup").write_text("9:name=systemd:/\n4:memory:/lab\n1:cpu:/\n0::/\n")
    folder = host.cgroups / "memory" / "lab"
    folder.mkdir(parents=True)
    (folder / "memory.limit_in_bytes").write_text(f"{1_000 * MB}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{600 * MB}\n")
    (folder / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {100 * MB}\n")
    assert pool.available("cpu") == 500 * MB


def test_without_memavailable_it_is_added_up_from_what_there_is(host):
    host.meminfo.write_text("MemTotal: 16000 kB\nMemFree: 1000 kB\nBuffers: 200 kB\nCached: 3000 kB\nShmem: 500 kB\n")
    assert pool.available("cpu") == 3700 * 1024
    host.meminfo.write_text("MemTotal: 16000 kB\nMemFree: 1000 kB\nShmem: 5000 kB\n")
    assert pool.available("cpu") == 0
    host.meminfo.write_text("MemTotal: 16000 kB\nMemFree: 1000 kB\n")
    assert pool.available("cpu") == 1000 * 1024 and pool.host("SwapFree") == 0


def test_available_is_never_negative(host):
    (host.process / "cgroup").write_text("0::/\n")
    (host.cgroups / "memory.max").write_text(f"{1_000 * MB}\n")
    (host.cgroups / "memory.current").write_text(f"{1_001 * MB}\n")
    assert pool.available("cpu") == 0


def test_available_without_proc_asks_psutil(host):
    import psutil

    host.meminfo.unlink()
    assert pool.available("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.05)
    assert pool.host("SwapTotal") == psutil.swap_memory().total


@pytest.mark.parametrize("said", [b"", b"MemTotal: 16 GB\nMemFree: 3 GB\n", b"MemTotal: 16000000 kB\n", b"\xff\0 x"])
def test_a_meminfo_that_does_not_say_enough_is_left_aside(said, host):
    import psutil

    host.meminfo.write_bytes(said)
    assert pool.host("MemTotal") == psutil.virtual_memory().total
    assert pool.available("cpu") == pytest.approx(psutil.virtual_memory().available, rel=0.05)


@pytest.mark.slow
def test_without_any_proc_the_c_library_is_asked(host, monkeypatch):
    import psutil

    expected = psutil.virtual_memory()
    host.meminfo.unlink()
    monkeypatch.setattr(psutil, "PROCFS_PATH", "/nowhere")
    assert pool.host("MemTotal") == pytest.approx(expected.total, rel=0.01)
    assert 0 < pool.available("cpu") <= expected.total and pool.host("SwapTotal") == 0
    assert list(holders.processes()) == []


@pytest.mark.parametrize("limit", ["max", "", "lots", "-1", "9223372036854771712"])
@pytest.mark.parametrize("usage", ["5", "", "x", None])
def test_a_limit_of_the_control_group_that_is_none_limits_nothing(limit, usage, host):
    free = pool.available("cpu")
    (host.process / "cgroup").write_text("0\n\n::\nx:y\n0::relative\n4:memory:/a\n0::/\n")
    (host.cgroups / "memory.max").write_text(limit)
    if usage is not None:
        (host.cgroups / "memory.current").write_text(usage)
    assert pool.available("cpu") == free


def test_available_on_this_machine_is_at_most_what_it_has():
    import psutil

    assert 0 < pool.available("cpu") <= psutil.virtual_memory().total


# -------------------------------------------------------------------------------------------------------------- track


@pytest.mark.slow
def test_the_peak_of_a_known_allocation_is_right_to_one_percent():
    with memory.track("cpu") as m:
        block = torch.ones(256 * MB, dtype=torch.uint8)
    assert m.peak_bytes == pytest.approx(block.numel(), rel=0.01)


@pytest.mark.slow
def test_the_peak_stays_right_in_a_process_that_has_lived_long():
    """Holes of all sizes in the heap, as hours of work leave them, must not hide an allocation or count for one."""
    draw, kept = random.Random(0), []
    for _ in range(3):
        for _ in range(1500):
            kept.append(torch.ones(draw.randrange(2_000, 2_000_000), dtype=torch.uint8))
            if len(kept) > 60:
                kept.pop(draw.randrange(len(kept)))
        with memory.track("cpu") as m:
            pieces = [torch.ones(MB, dtype=torch.uint8) for _ in range(256)]
        assert m.peak_bytes == pytest.approx(256 * MB, rel=0.01)
        line = m.timeline()
        assert line.bytes.iloc[-1] == pytest.approx(256 * MB, rel=0.01)
        with memory.track("cpu") as m:
            del pieces
            gc.collect()
        assert m.peak_bytes < 2 * MB


@pytest.fixture
def sampling(monkeypatch) -> list[float]:
    """Seconds of the processor that the sampling thread of each block took, all of its life."""
    seconds = []

    def watch(tracker, real=memory.Tracker._watch):
        real(tracker)
        seconds.append(time.thread_time())

    monkeypatch.setattr(memory.Tracker, "_watch", watch)
    return seconds


@pytest.mark.slow
def test_tracking_costs_a_forward_less_than_one_percent(sampling, one_thread):
    """Processor time of the thread that samples, beside the time of the forwards that it watches.

    What the forwards themselves lose by it is too little for a test beside other work: `make bench` measures it.
    """
    model, _ = models.load("tiny/transformer", dtype=torch.float32, device="cpu")
    ids = torch.arange(1, 257)[None]

    @torch.inference_mode()
    def forwards() -> tuple[float, float]:
        start, start_of_processor = time.perf_counter(), time.process_time()
        for _ in range(20):
            model(ids)
        return time.perf_counter() - start, time.process_time() - start_of_processor

    def tracked():
        with memory.track("cpu") as m:
            taken = forwards()
        return *taken, len(m.timeline())

    def untracked():
        meters.Host().settle()  # as tracking begins: what is measured is not how the heap grows again
        return forwards()

    untracked(), tracked()
    sampling.clear()
    pairs = [(tracked(), untracked()) for _ in range(9)]
    walls, processors, samples = zip(*(with_it for with_it, _ in pairs), strict=True)
    without = min(processor for _, (_, processor) in pairs)
    of_time, of_processor = sum(sampling) / sum(walls), sum(sampling) / sum(processors)
    print(f"sampling takes {of_time:.2%} of the time; the fastest forwards: {min(processors) / without - 1:+.2%}")
    assert of_time < 0.01 and of_processor < 0.03 and min(processors) < 1.1 * without
    assert sum(samples) >= 9 * 3  # of each block two are those of its begin and its end


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False], ids=["an exact peak", "the samples are the peak"])
def test_the_dearer_a_sample_the_fewer_are_taken(monkeypatch, sampling, exact):
    def dear(meter, real=meters.Host.level):
        meter.exact, until = exact, time.thread_time() + 0.002
        while time.thread_time() < until:
            pass
        return real(meter)

    monkeypatch.setattr(meters.Host, "level", dear)
    start = time.perf_counter()
    with memory.track("cpu", interval=0.001) as m:
        time.sleep(2)
    assert 0 < sum(sampling) < 0.01 * (time.perf_counter() - start)  # one every millisecond would take all of it
    assert len(m.timeline()) > 3


@pytest.mark.slow
def test_a_spike_between_two_samples_is_in_the_peak():
    if not meters.Host().exact:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    with memory.track("cpu", interval=60) as m:
        del (block := [torch.ones(256 * MB, dtype=torch.uint8)])[:]
    assert not block and m.peak_bytes == pytest.approx(256 * MB, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("proc", [False, True], ids=["no /proc", "a sandbox that forbids the reset"])
def test_without_a_high_water_mark_the_samples_give_the_peak(host, proc):
    if proc:
        (host.process / "status").write_text("VmHWM:\t 99999999 kB\n")  # the peak of the process's whole life
        (host.process / "clear_refs").mkdir()  # writing fails
    with memory.track("cpu", interval=0.002) as m:
        block = torch.ones(256 * MB, dtype=torch.uint8)
        time.sleep(0.05)
        del block
    assert m.peak_bytes == pytest.approx(256 * MB, rel=0.01)


@pytest.mark.slow
def test_memory_that_the_heap_kept_does_not_hide_an_allocation():
    def many_small():
        return [bytes(50_000) for _ in range(2_000)]  # below the size at which glibc maps pages of their own

    kept, pin = many_small(), []
    pin.append(bytes(50_000))  # on top, so that freeing alone cannot shrink the heap
    del kept
    with memory.track("cpu") as m:
        blocks = many_small()
    assert m.peak_bytes == pytest.approx(sum(map(len, blocks)), rel=0.05)


@pytest.mark.slow
def test_memory_that_is_merely_promised_does_not_count():
    with memory.track("cpu") as m:
        block = torch.empty(256 * MB, dtype=torch.uint8)
    assert block.numel() == 256 * MB and m.peak_bytes < 10 * MB


@pytest.mark.slow
def test_phases_have_their_own_peaks_above_the_level_at_entry():
    with memory.track("cpu") as m:
        m.mark("load")
        weights = torch.ones(100 * MB, dtype=torch.uint8)
        m.mark("prefill")
        del (activations := [torch.ones(200 * MB, dtype=torch.uint8)])[:]
        m.mark("decode")
        time.sleep(0.03)
    assert not activations and weights.numel() == 100 * MB
    phases = m.phases()
    assert list(phases) == ["start", "load", "prefill", "decode"]
    assert phases["start"] < 5 * MB
    assert phases["load"] == pytest.approx(100 * MB, rel=0.03)
    assert phases["prefill"] == pytest.approx(300 * MB, rel=0.03)
    assert phases["decode"] == pytest.approx(100 * MB, rel=0.03)
    assert m.peak_bytes == phases["prefill"]


@pytest.mark.slow
def test_a_phase_does_not_pay_for_what_the_heap_kept_of_the_one_before():
    """Pieces of one megabyte leave a hole between what stays; a tensor that fits is put there, and the hole is kept."""
    pieces = [torch.ones(MB // 4, dtype=torch.uint8) for _ in range(1_000)]
    pin = bytes(50_000)  # on top, so that freeing alone cannot shrink the heap
    del pieces
    with memory.track("cpu") as m:
        m.mark("prefill")
        del (activations := [torch.ones(MB // 4, dtype=torch.uint8) for _ in range(800)])[:]
        m.mark("decode")
    assert not activations and pin
    phases = m.phases()
    assert phases["prefill"] == pytest.approx(200 * MB, rel=0.05) and phases["decode"] < 10 * MB


@pytest.mark.slow
def test_the_timeline_shows_the_phases_in_order_and_ends_where_the_block_ends():
    with memory.track("cpu", interval=0.002) as m:
        time.sleep(0.02)
        m.mark("load")
        block = torch.ones(64 * MB, dtype=torch.uint8)
        time.sleep(0.02)
    line = m.timeline()
    assert list(line.columns) == ["seconds", "bytes", "phase"] and block.numel() == 64 * MB
    assert line.seconds.is_monotonic_increasing and line.seconds.iloc[-1] >= 0.04
    assert list(line.phase.unique()) == ["start", "load"]
    assert line.bytes.iloc[-1] == pytest.approx(64 * MB, rel=0.05)
    assert line.bytes.max() <= m.peak_bytes
    time.sleep(0.02)
    assert len(m.timeline()) == len(line)


@pytest.mark.slow
def test_figures_can_be_read_inside_the_block():
    with memory.track("cpu") as m:
        assert m.peak_bytes < 5 * MB
        block = torch.ones(64 * MB, dtype=torch.uint8)
        assert m.peak_bytes == pytest.approx(block.numel(), rel=0.05)
        assert len(m.timeline()) >= 2


@pytest.mark.slow
def test_an_exception_passes_through_and_the_thread_ends():
    with pytest.raises(RuntimeError, match="mine"), memory.track("cpu") as m:
        block = torch.ones(64 * MB, dtype=torch.uint8)
        raise RuntimeError("mine")
    assert m.peak_bytes == pytest.approx(block.numel(), rel=0.05)
    assert not [thread for thread in threading.enumerate() if thread.name == "memory.track"]
    assert not memory._active


@pytest.mark.slow
@pytest.mark.parametrize("at", range(0, 8, 2))
@pytest.mark.parametrize("step", ["settle", "level", "peak"])
def test_twenty_ctrl_c_amid_entry_or_exit_are_raised_once_all_is_in_order(step, at, monkeypatch):
    """Real signals, in each of the steps that take time: at its first call, its second ..."""
    real, calls = getattr(meters.Host, step), []

    def interrupted(meter):
        calls.append(step)
        if len(calls) == at + 1 and threading.current_thread() is threading.main_thread():
            for _ in range(20):
                signal.raise_signal(signal.SIGINT)
        return real(meter)

    monkeypatch.setattr(meters.Host, step, interrupted)
    came = False
    try:
        with memory.track("cpu", interval=60), memory.track("cpu", interval=60):
            pass
    except KeyboardInterrupt:
        came = True
    assert came == (len(calls) > at)
    assert not memory._active and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert not [thread for thread in threading.enumerate() if thread.name == "memory.track"]


def test_the_guard_s_stop_amid_the_exit_is_raised_after_it(monkeypatch):
    def stop(number, frame):
        raise MemoryError("the guard")

    before = signal.signal(signal.SIGUSR2, stop)
    try:
        with pytest.raises(MemoryError, match="guard"), memory.track("cpu", interval=60) as m:
            sample = m._sample
            monkeypatch.setattr(m, "_sample", lambda **k: (signal.raise_signal(signal.SIGUSR2), sample(**k)))
        assert not memory._active and signal.getsignal(signal.SIGUSR2) is stop
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_an_interrupt_in_the_block_is_raised_there():
    with memory.track("cpu") as m, pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert m.peak_bytes >= 0 and not memory._active


def test_a_thread_that_cannot_start_leaves_no_tracker(monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"), memory.track("cpu"):
        pass
    assert not memory._active and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def of_the_process() -> tuple:
    names = [thread.name for thread in threading.enumerate()]
    return names, list(memory._active), [signal.getsignal(number) for number in memory.STOPS]


def test_a_tracker_is_entered_once_and_read_after_it():
    before = of_the_process()
    tracker = memory.track("cpu")
    for read in (lambda: tracker.peak_bytes, tracker.phases, lambda: tracker.mark("a")):
        with pytest.raises(CourseError, match="Nothing was tracked"):
            read()
    with tracker, pytest.raises(CourseError, match="watches one block, once"), tracker:
        pass
    with pytest.raises(CourseError, match="watches one block, once"), tracker:
        pass
    assert tracker.peak_bytes >= 0 and of_the_process() == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a machine without a GPU")
def test_tracking_a_gpu_that_is_not_there_is_one_sentence():
    with pytest.raises(BadInput, match="torch finds 0 GPUs"):
        memory.track("cuda")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM])
def test_a_handler_that_raises_ends_the_block_and_nothing_stays(number):
    def stop(*_):
        raise SystemExit(3)

    own = signal.signal(number, stop)
    try:
        before = of_the_process()
        with pytest.raises(SystemExit), memory.track("cpu"):
            os.kill(os.getpid(), number)
            time.sleep(5)
        assert of_the_process() == before
    finally:
        signal.signal(number, own)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_generator_that_is_closed_early_leaves_nothing(elsewhere):
    def steps():
        with memory.track("cpu"):
            yield 1

    before = of_the_process()
    generator, failed = steps(), []
    next(generator)

    def close():
        try:
            generator.close()
        except Exception as error:
            failed.append(error)

    if elsewhere:
        thread = threading.Thread(target=close)
        thread.start()
        thread.join()
    else:
        close()
    names, active, handlers = of_the_process()
    assert not failed and (names, active) == before[:2]
    if elsewhere:  # no other thread can take its handler back; it passes on
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        for number, handler in zip(memory.STOPS, before[2], strict=True):
            signal.signal(number, handler)
    else:
        assert handlers == before[2]


@pytest.mark.slow
def test_a_thread_can_track_while_the_main_one_does():
    peaks = []

    def inside():
        with memory.track("cpu") as inner:
            kept = torch.ones(16_000_000)  # too large for what the process has freed before
        peaks.append(inner.peak_bytes)
        del kept

    before = of_the_process()
    with memory.track("cpu") as outer:
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
    assert 60e6 < peaks[0] <= outer.peak_bytes + 5e6 and of_the_process() == before


@pytest.mark.slow
def test_an_inner_tracker_does_not_take_the_outer_ones_peak_away():
    with memory.track("cpu", interval=60) as outer:
        del (first := [torch.ones(256 * MB, dtype=torch.uint8)])[:]
        with memory.track("cpu", interval=60) as inner:
            second = torch.ones(64 * MB, dtype=torch.uint8)
        inner_peak = inner.peak_bytes
        del second
    assert not first
    assert inner_peak == pytest.approx(64 * MB, rel=0.03)
    assert outer.peak_bytes == pytest.approx(256 * MB, rel=0.03)


@pytest.mark.slow
def test_on_a_discrete_gpu_the_peak_is_the_allocators(gpu):
    gpu.allocated = gpu.peak = 500 * MB
    with memory.track("cuda", interval=60) as outer:
        gpu.allocated = gpu.peak = 800 * MB
        gpu.allocated = 500 * MB
        with memory.track("cuda", interval=60) as inner:
            gpu.allocated = gpu.peak = 600 * MB
    assert (outer.peak_bytes, inner.peak_bytes) == (300 * MB, 100 * MB)


@pytest.mark.slow
def test_on_unified_memory_resident_and_reserved_add_up(gpu):
    gpu.integrated, gpu.reserved, gpu.allocated = 1, 900 * MB, 400 * MB
    with memory.track("cuda", interval=60) as m:
        assert gpu.emptied == 1 and gpu.reserved == 400 * MB  # what torch merely keeps would hide an allocation
        on_host = torch.ones(64 * MB, dtype=torch.uint8)
        gpu.reserved += 200 * MB
        m.mark("end")
    assert m.peak_bytes == pytest.approx(on_host.numel() + 200 * MB, rel=0.03)
    assert gpu.watched == 1  # from here on the watchdog runs


# -------------------------------------------------------------------------------------------------------- cache_bytes


def test_cache_bytes_counts_each_kind_and_each_tensor_once():
    keys, conv = torch.zeros(1, 2, 5, 4, dtype=torch.bfloat16), torch.zeros(1, 8, 4, dtype=torch.bfloat16)
    attention = SimpleNamespace(keys=keys, values=keys.clone())
    shared_with_it = SimpleNamespace(keys=keys, values=attention.values)
    mamba = SimpleNamespace(conv_states={0: conv}, recurrent_states={0: torch.zeros(1, 8, 16), 1: None})
    counted = memory.cache_bytes(SimpleNamespace(layers=[attention, shared_with_it, mamba]))
    assert counted == memory.CacheBytes(kv=2 * 40 * 2, conv=32 * 2, recurrent=128 * 4)
    assert counted.total == 160 + 64 + 512


def test_cache_bytes_tells_windows_latents_and_indexers_apart_and_misses_nothing():
    def tensor(*shape):
        return torch.zeros(1, *shape, dtype=torch.bfloat16)

    window = SimpleNamespace(keys=tensor(2, 3, 4), values=tensor(2, 3, 4), is_sliding=True)
    window.length = torch.tensor(3)  # a number that is no state
    latent = SimpleNamespace(keys=tensor(1, 5, 16), values=tensor(1, 5, 8))
    multi_query = SimpleNamespace(keys=tensor(1, 5, 8), values=tensor(1, 5, 8))
    sparse = SimpleNamespace(keys=tensor(2, 5, 4), values=tensor(2, 5, 4), indexer_keys=tensor(5, 6))
    compressed = SimpleNamespace(compressed_kv={"compressor": tensor(2, 7), "indexer": None})
    layers = [window, latent, multi_query, sparse, compressed]
    kinds = memory.CacheBytes(window=96, latent=5 * 24 * 2, kv=160 + 160, index=60 + 28)
    assert memory.cache_bytes(SimpleNamespace(layers=layers)) == kinds
    assert kinds.total == 96 + 240 + 320 + 88

    # A decoder that can look at an encoder has two caches; MiniMax keeps states beside the layers.
    two = SimpleNamespace(
        self_attention_cache=SimpleNamespace(layers=[multi_query]), cross_attention_cache=SimpleNamespace(layers=[])
    )
    assert memory.cache_bytes(two).kv == 160
    empty = SimpleNamespace(keys=None, values=None)
    minimax = SimpleNamespace(layers=[multi_query, empty], linear_cache=[[], tensor(4, 4, 4)])
    assert memory.cache_bytes(minimax) == memory.CacheBytes(kv=160, recurrent=128)


def test_cache_bytes_of_a_new_cache_is_zero_and_of_a_static_one_is_all_it_reserves():
    from transformers import DynamicCache, GPTNeoXConfig, StaticCache

    config = GPTNeoXConfig(
        hidden_size=32, num_attention_heads=4, num_hidden_layers=2, vocab_size=64, intermediate_size=64
    )
    assert memory.cache_bytes(DynamicCache(config=config)).total == 0
    static = StaticCache(config=config, max_cache_len=100)
    one_token = torch.zeros(1, 4, 1, 8)
    for layer in range(2):
        static.update(one_token, one_token, layer)
    assert memory.cache_bytes(static).kv == 2 * 2 * 100 * 32 * 4


@pytest.mark.parametrize("wrong", [None, 3, (torch.zeros(1), torch.zeros(1))])
def test_cache_bytes_of_something_else_says_what_it_needs(wrong):
    with pytest.raises(
        TypeError, match=r"needs the cache of a model's output and got \w+: call the model with use_cache"
    ):
        memory.cache_bytes(wrong)


# -------------------------------------------------------------------------------------------------------------- human


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (512, "512 B"),
        (999.6, "1 kB"),
        (81_920, "81.9 kB"),
        (23_592_960, "23.6 MB"),
        (999_900_000, "1 GB"),
        (5_536_691_200, "5.54 GB"),
        (93_405_585_408, "93.4 GB"),
        (2**30, "1.07 GB"),
        (5e15, "5000 TB"),
        (-2e6, "-2 MB"),
    ],
)
def test_human_sizes_are_decimal_and_never_overflow_their_unit(size, text):
    assert memory.human(size) == text
