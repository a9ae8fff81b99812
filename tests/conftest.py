"""What several tests share: an environment without network, one run of the solved labs by `make run`, its outputs."""

import ctypes
import gc
import mmap
import os
import re
import shutil
import signal
import subprocess

import nbformat
import pytest
from hypothesis import settings

from shared import files, notebooks

# The same few examples at every run, however slow the machine.
settings.register_profile("course", max_examples=25, deadline=None, derandomize=True)
settings.load_profile("course")

# A shell that starts the tests in the background has told them to ignore Ctrl-C, which several of them send.
signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ["COURSE_PROGRESS"] = "off"  # what a test solves is nobody's progress

CHROMIUM = shutil.which("chromium")
CHROMIUM_FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]

CLOSED = "http://127.0.0.1:9"  # nothing listens on the discard port


LABS = re.compile(r"test_(chain|site|lab_\w+)\.py$")  # they read the one run of the solved labs
LONG = (
    "rehearsal",
    "twice",
    "hub",
    "stops",
    "evaluate",
    "kernels_build",
    "launch",
    "tiny_models",
    "reference",
    "setup",
)
LONG += ("grade", "release", "caches", "browser")
LONG += ("doctor", "streaming", "kernels", "forecast", "memory", "experts", "models", "plans", "guard")


def pytest_xdist_make_scheduler(config, log):
    """For two workers: file by file; all files that read the one run of the solved labs count as one."""
    from xdist.scheduler import LoadFileScheduling

    class Labs(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "labs" if LABS.search(file) else file

    return Labs(config, log)


def pytest_collection_modifyitems(items):
    """The longest first: the labs, then the files of `LONG`. What is short fills both workers up to the same end."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: -1 if LABS.search(item.path.name) else place.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    """What was imported stays: a collection of garbage need not walk through it at each of thousands of tests."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_process(request, monkeypatch):
    """A test that starts a process has the mark `slow`, so that `make check` stays short."""

    def refuse(process, command, *args, **kwargs):
        raise AssertionError(f"{request.node.name} starts {command}: mark it with pytest.mark.slow.")

    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(scope="session")
def no_network(tmp_path_factory) -> dict[str, str]:
    """An environment in which any request to a hub fails at once, with empty caches."""
    proxies = {name: CLOSED for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    home = str(tmp_path_factory.mktemp("hf"))
    return {**os.environ, **proxies, "HF_ENDPOINT": CLOSED, "HF_HOME": home, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def chromium() -> None:
    if CHROMIUM is None:
        reason = "no chromium on this machine (Debian: sudo apt install chromium)"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)


@pytest.fixture(scope="session")
def made(no_network) -> str:
    """What `make run` printed."""
    # Under `make test` make would add lines of its own about folders.
    done = subprocess.run(
        ["make", "--no-print-directory", "run"], cwd=files.ROOT, env=no_network, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def said(request, made) -> dict[str, str]:
    """What each cell of the module's LAB printed in that run, by the cell's id."""
    path = files.BUILD / "executed" / notebooks.path_of(request.module.LAB).name
    return {cell.id: notebooks.text(cell) for cell in nbformat.read(path, as_version=4).cells}


@pytest.fixture
def gpu(monkeypatch):
    """A discrete GPU that answers with its numbers."""
    from played import Gpu

    return Gpu().plugged_in(monkeypatch)


@pytest.fixture
def spark(tmp_path, monkeypatch):
    """A DGX Spark: `spark.leave(size)` sets what is available."""
    from played import Spark

    return Spark().switched_on(monkeypatch, tmp_path)


@pytest.fixture
def one_thread():
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


REFUSES = """
def {name}(x, *args, **kwargs):
    if not x.is_cuda:
        raise RuntimeError("a CUDA kernel got a CPU tensor")
"""
STUB = {
    "causal_conv1d/__init__.py": ("causal_conv1d_fn", "causal_conv1d_update"),
    "mamba_ssm/__init__.py": (),
    "mamba_ssm/ops/__init__.py": (),
    "mamba_ssm/ops/triton/__init__.py": (),
    "mamba_ssm/ops/selective_scan_interface.py": ("mamba_inner_fn", "selective_scan_fn"),
    "mamba_ssm/ops/triton/selective_state_update.py": ("selective_state_update",),
}


def stub_kernels(folder, extra: str = ""):
    """Packages that can be imported as Mamba's kernels can, and whose functions crash on a CPU tensor as theirs do."""
    for file, names in STUB.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(extra + "".join(REFUSES.format(name=name) for name in names))
    return folder


def published_bytes(*names: str) -> int:
    """Bytes of the weights of models as they are published, in the type that their configs name."""
    from shared import models
    from shared.models.sizes import published_config

    return sum(models.size(name, published_config(name).dtype).weight_bytes for name in names)


def numbers(text: str) -> list[float]:
    """The numbers in a text, in order."""
    return [float(n.replace(",", "")) for n in re.findall(r"-?\d[\d,]*\.?\d*", text)]


def rows_of(text: str) -> dict[str, list[float]]:
    """A printed table: what names a row, up to two spaces or a colon, without "tiny/" -> the numbers after it."""
    lines = [re.match(r"\s*(?:tiny/)?(\S.*?)(?:: +|  +)(.*\d.*)", line) for line in text.splitlines()]
    return {found[1]: numbers(found[2]) for found in lines if found}


def small_disk(folder, size: str) -> tuple[str, ...]:
    """Start of a command that has a disk of `size` at `folder`, if this machine lets us mount one."""
    folder.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o size={size} none "{folder}" && exec "$@"'
    command = ("unshare", "-rm", "sh", "-c", script, "sh")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("this machine does not let a test mount a small disk")
    return command


def cached_pages(file) -> float:
    """Share of a file's pages that are in the page cache."""
    with open(file, "r+b") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = -(-len(mapped) // mmap.PAGESIZE)
        found, first = (ctypes.c_ubyte * pages)(), ctypes.c_char.from_buffer(mapped)
        address = ctypes.c_void_p(ctypes.addressof(first))
        assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), found) == 0
        del first
        return sum(page & 1 for page in found) / pages
