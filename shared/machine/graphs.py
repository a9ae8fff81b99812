"""Decode with a CUDA graph: the kernels of one step are recorded once, and one call starts them all again.

An eager step asks for each kernel from Python, and with a small model the asking takes longer than the kernel. A graph
asks once, and always for the same addresses: what a step reads and writes has to stay where it is (`fixed`).

Rules of recording: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs. On a GPU the tests
compare its logits with eager ones (done on an H200); on a CPU, tests/recorder.py records and replays by the same rules.
"""

import warnings
from collections.abc import Callable

import torch

from shared.errors import CourseError

DEVICE = "cuda"  # the type of device that has graphs


def fixed(cache, tokens: int):
    """The cache of a prefill, in place, as tensors whose place and size stay; keys and values get room for `tokens`.

    Prefill with the cache that grows: the mask of a fixed one is (T, tokens). A state of Mamba is fixed as it is. From
    here on attention reads the whole room, behind a mask: leave no more than is written. With a mask on a GPU,
    transformers copies keys and values that several query heads share (`use_gqa_in_sdpa`): such a graph has more to do.

    Raises: CourseError for a cache that can be neither, such as that of sliding windows.
    """
    from transformers.cache_utils import DynamicLayer, LinearAttentionLayer, StaticLayer

    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[number] = StaticLayer(tokens)
            cache.layers[number].update(layer.keys, layer.values)
        elif type(layer) is not LinearAttentionLayer:
            raise CourseError(f"A cache with a {type(layer).__name__} moves, which no CUDA graph can: decode eagerly.")
    return cache


def capture(step: Callable[[], None], device: torch.device | str, warmup: int = 3) -> Callable[[], None]:
    """Record one call of `step` and return what replays it.

    The `warmup` calls before that are real: each does on the GPU what a replay does. The recorded one runs nothing.

    Args:
        step: reads and writes tensors that stay where they are, and does not wait for the GPU.
        device: where those tensors are.
        warmup: calls of `step` before it is recorded, 1 or more: libraries set themselves up in the first.

    Raises: CourseError on a device without graphs, and for a step that waits for the GPU or cannot be recorded.
    """
    if torch.device(device).type != DEVICE:
        raise CourseError(f"CUDA graphs need an NVIDIA GPU, and this model is on the {device}: decode eagerly.")
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    # Nothing can be recorded on the default stream, and a workspace made in warm-up serves its own stream alone.
    with torch.cuda.stream(stream):
        for _ in range(warmup - 1):
            step()
        try:
            _strictly(step)
            stream.synchronize()
            _record(step, graph)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CourseError(
                f"This step cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}): decode eagerly, or, for "
                'a mixture of experts in 16 bits, call model.set_experts_implementation("batched_mm") first, which '
                "does not wait for the GPU."
            ) from error
    torch.cuda.current_stream(device).wait_stream(stream)

    def replay(_kept=step) -> None:  # the graph knows addresses: the step keeps what lies there
        graph.replay()

    return replay


def _strictly(step: Callable[[], None]) -> None:
    """Call a step that raises where it waits: once a recording has failed, CUDA is not to be relied on any more."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype")
        torch.cuda.set_sync_debug_mode("error")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode(before)


def _record(step: Callable[[], None], graph) -> None:
    # torch.cuda.graph would first empty the allocator's cache, and the next prefill would be timed with cudaMalloc.
    # Calls of other threads, such as a watchdog's that asks for free memory, are none of this graph's business.
    graph.capture_begin(capture_error_mode="thread_local")
    try:
        step()
    finally:
        graph.capture_end()
