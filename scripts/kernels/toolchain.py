"""What has to be there before `make kernels` compiles: a GPU, a CUDA toolkit, a compiler, memory and disk."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from shared.units import human

JOB_BYTES, DISK_BYTES = 4e9, 2e9  # one compiler at its peak, and everything that the build writes; measured, rounded up


class Stop(Exception):
    """Why there are no kernels, in one sentence with what to do next."""


def check_gpu() -> tuple[int, int]:
    """The compute capability of this machine's GPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_capability()
    why = "PyTorch sees no NVIDIA GPU here"
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        why = (
            "the installed PyTorch is a build without CUDA: `make setup` with TORCH_INDEX_URL= a CUDA index brings one"
        )
    raise Stop(f"the kernels run on an NVIDIA GPU only, and {why}; the labs need none at scale tiny.")


def find_toolkit(torch_cuda: str, places: list[Path] | None = None) -> Path:
    """The CUDA toolkit whose nvcc can compile against this PyTorch: of the same major version."""
    if places is None:
        named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
        nvcc = [Path(found).resolve().parents[1] for found in [shutil.which("nvcc")] if found]
        # What the user names is meant; else the version decides.
        places = [Path(named[0])] if named else [Path(f"/usr/local/cuda-{torch_cuda}"), Path("/usr/local/cuda"), *nvcc]
    seen = []
    for place in places:
        if (place / "bin/nvcc").exists():
            said = subprocess.run([place / "bin/nvcc", "--version"], capture_output=True, text=True).stdout
            version = re.search(r"release (\d+)\.(\d+)", said)
            whole = (place / "include/cuda_runtime.h").exists() and (place / "include/cusparse.h").exists()
            if version and version[1] == torch_cuda.split(".")[0] and whole:
                return place
            seen.append(f"{place} has {version[0] if version else 'an nvcc that does not start'}")
            seen[-1] += "" if whole else " without the libraries' headers"
    major = torch_cuda.split(".")[0]
    raise Stop(
        f"compiling against PyTorch for CUDA {torch_cuda} needs a whole CUDA toolkit {major}.x, and "
        f"{'; '.join(seen) or 'no nvcc was found'}: install it (NVIDIA's repository: "
        f"`sudo apt install cuda-toolkit-{torch_cuda.replace('.', '-')}`), or name it with CUDA_HOME=."
    )


def architecture(capability: tuple[int, int], toolkit: Path) -> str:
    """The one architecture to compile for, such as "12.1": the GPU's, or the nearest before it that nvcc knows.

    Code for 12.0 runs on 12.1, code for another major version does not.
    """
    said = subprocess.run([toolkit / "bin/nvcc", "--list-gpu-code"], capture_output=True, text=True).stdout
    known = {divmod(int(number), 10) for number in re.findall(r"\bsm_(\d+)\b", said)}
    fitting = [one for one in known if one[0] == capability[0] and one <= capability]
    if not fitting:
        raise Stop(
            f"{toolkit}/bin/nvcc compiles nothing for this GPU ({capability[0]}.{capability[1]}): it is too old."
        )
    return "{}.{}".format(*max(fitting))


def check_compiler(torch_cuda: str) -> None:
    """A C++ compiler that nvcc accepts, and Python's headers."""
    from torch.utils.cpp_extension import CUDA_GCC_VERSIONS

    found = shutil.which(os.environ.get("CXX", "c++"))
    if not found:
        raise Stop("there is no C++ compiler: `sudo apt install g++`.")
    said = subprocess.run([found, "-dumpfullversion", "-dumpversion"], capture_output=True, text=True).stdout.strip()
    least, below = CUDA_GCC_VERSIONS.get(torch_cuda, ((0,), (1000,)))
    numbers = tuple(int(number) for number in re.findall(r"\d+", said))
    if numbers and not least <= numbers < below:
        raise Stop(
            f"{found} is version {said}, and CUDA {torch_cuda} takes from {least[0]} to below {below[0]}: "
            f"`sudo apt install g++-{below[0] - 1}`, then CXX=g++-{below[0] - 1} CC=gcc-{below[0] - 1} make kernels."
        )
    headers = Path(sysconfig.get_path("include")) / "Python.h"
    if not headers.exists():
        version = "{}.{}".format(*sys.version_info)
        raise Stop(f"{headers} is missing: `sudo apt install python{version}-dev`.")


def jobs(cores: int, free: int) -> int:
    """How many compilers can run at once in `free` bytes of memory."""
    if free < JOB_BYTES:
        raise Stop(
            f"a compiler takes up to {human(JOB_BYTES)} of memory and {human(free)} are free: close other notebooks."
        )
    return max(1, min(cores, int(0.8 * free / JOB_BYTES)))


def check_disk(folder: Path) -> None:
    """Room for the build in this folder."""
    free = shutil.disk_usage(folder).free
    if free < DISK_BYTES:
        raise Stop(f"the build needs {human(DISK_BYTES)} of disk and {folder} has {human(free)} free: make room.")
