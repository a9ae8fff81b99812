"""`make kernels` without a GPU: what is missing is said in a sentence, one architecture is compiled, whole or nothing.

No GPU was here. torch's answers about one are put in, and nvcc and the C++ compiler are scripts that note how they are
called; the packages' sources, their setup.py, torch's build rules, ninja and pip are the real ones. Where a build has
to give kernels that run, the packages are small ones whose functions are transformers' reference.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import pytest
import torch

from shared.files import ROOT

pytestmark = pytest.mark.slow

CLOSED = "http://127.0.0.1:9/simple"


def script(name: str):
    """One of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolchain(monkeypatch):
    module = script("kernels/toolchain")
    monkeypatch.setitem(sys.modules, "toolchain", module)
    return module


def executable(path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


NVCC = """
case "$*" in
--version | -V) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_100\\nsm_120\\n{newest}\\n' ;;
*) echo "$@" >> "{calls}"
   {compile} ;;
esac
"""
# Writes what a compiler writes: the object, and for ninja the files that it depends on, here none.
COMPILE = """
   while [ $# -gt 1 ]; do
      case "$1" in -o) out=$2 ;; -MF) dependencies=$2 ;; esac
      shift
   done
   : > "$out"
   [ -z "$dependencies" ] || echo "$out:" > "$dependencies"
"""


def toolkit(folder, version="13.0", newest="sm_121"):
    """A CUDA toolkit whose nvcc notes its arguments and writes an empty file where it should compile."""
    text = NVCC.format(version=version, newest=newest, calls=folder / "calls", compile=COMPILE)
    executable(folder / "bin/nvcc", text)
    (folder / "include").mkdir()
    for header in ("cuda_runtime.h", "cusparse.h"):
        (folder / "include" / header).touch()
    (folder / "lib64").mkdir()
    return folder


# ---- what is missing is said in a sentence ----------------------------------------------------------------------


def stops(toolchain, call, *arguments) -> str:
    with pytest.raises(toolchain.Stop) as stop:
        call(*arguments)
    text = str(stop.value)
    assert "\n" not in text and text.endswith(".") and not re.search(r"[.] [A-Z]", text), text
    return text


def test_without_a_gpu_make_kernels_says_one_sentence_and_changes_nothing():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run(
        [sys.executable, ROOT / "scripts/kernels/build.py", "build"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 1 and done.stdout == ""
    assert re.fullmatch(r"No kernels: the kernels run on an NVIDIA GPU only, and [^\n]*\.\n", done.stderr)
    assert not (ROOT / ".venv/kernels").exists()


def test_a_gpu_without_a_cuda_torch_gets_the_command_for_one(toolchain, monkeypatch, tmp_path):
    executable(tmp_path / "nvidia-smi", "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "TORCH_INDEX_URL=" in stops(toolchain, toolchain.check_gpu)


def test_the_toolkit_of_torchs_major_version_is_taken(toolchain, tmp_path):
    old, new = toolkit(tmp_path / "cuda-12.8", "12.8"), toolkit(tmp_path / "cuda-13.1", "13.1")
    assert toolchain.find_toolkit("13.0", [old, new]) == new
    assert toolchain.find_toolkit("12.6", [old, new]) == old


def test_an_old_a_half_and_an_absent_toolkit_are_named(toolchain, tmp_path):
    old, half = toolkit(tmp_path / "cuda-12.8", "12.8"), toolkit(tmp_path / "cuda-13.0")
    (half / "include/cusparse.h").unlink()
    text = stops(toolchain, toolchain.find_toolkit, "13.0", [old, half, tmp_path / "none"])
    assert f"{old} has release 12.8" in text and f"{half} has release 13.0 without the libraries' headers" in text
    assert "sudo apt install cuda-toolkit-13-0" in text
    assert "no nvcc was found" in stops(toolchain, toolchain.find_toolkit, "13.0", [tmp_path / "none"])


def test_a_toolkit_that_the_user_names_is_the_only_one_looked_at(toolchain, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "mine", "12.8")))
    assert f"{tmp_path / 'mine'} has release 12.8:" in stops(toolchain, toolchain.find_toolkit, "13.0")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "other", "13.0")))
    assert toolchain.find_toolkit("13.0") == tmp_path / "other"


@pytest.mark.parametrize(
    ("capability", "newest", "arch"),
    [((12, 1), "sm_121", "12.1"), ((12, 1), "sm_120", "12.0"), ((8, 6), "sm_121", "8.0"), ((9, 0), "sm_121", "9.0")],
)
def test_one_architecture_is_compiled_the_nearest_that_runs(toolchain, tmp_path, capability, newest, arch):
    assert toolchain.architecture(capability, toolkit(tmp_path / "cuda", newest=newest)) == arch


def test_a_gpu_that_nvcc_does_not_know_is_refused(toolchain, tmp_path):
    assert "too old" in stops(toolchain, toolchain.architecture, (13, 0), toolkit(tmp_path / "cuda"))


def test_compilers_run_at_once_as_memory_allows(toolchain):
    assert toolchain.jobs(20, int(100e9)) == 20 and toolchain.jobs(20, int(24e9)) < 20
    assert toolchain.jobs(20, int(toolchain.JOB_BYTES)) == 1
    assert "close other notebooks" in stops(toolchain, toolchain.jobs, 20, int(1e9))


def test_a_compiler_too_new_for_cuda_and_missing_headers_are_named(toolchain, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(executable(tmp_path / "c++", "echo 16.1.0")))
    assert "is version 16.1.0" in stops(toolchain, toolchain.check_compiler, "13.0")
    executable(tmp_path / "c++", "echo 13.3.0")
    toolchain.check_compiler("13.0")
    monkeypatch.setattr(toolchain.sysconfig, "get_path", lambda name: str(tmp_path))
    assert re.search(r"sudo apt install python3\.\d+-dev", stops(toolchain, toolchain.check_compiler, "13.0"))
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert "sudo apt install g++" in stops(toolchain, toolchain.check_compiler, "13.0")


def test_a_full_disk_is_named(toolchain, tmp_path, monkeypatch):
    toolchain.check_disk(tmp_path)
    monkeypatch.setattr(toolchain.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    assert "needs 2 GB of disk" in stops(toolchain, toolchain.check_disk, tmp_path)


# ---- a build ----------------------------------------------------------------------------------------------------

# A machine with a Spark's GPU, as far as torch answers: Python reads this when it starts. pip asks torch nothing.
SPARK = """
import sys
if sys.orig_argv[1:3] != ["-m", "pip"]:
    import torch
    torch.version.cuda = "13.0"
    torch.cuda.is_available = torch.cuda._is_compiled = lambda: True
    torch.cuda.get_device_capability = lambda *device: (12, 1)
    torch.cuda.get_device_name = lambda *device: "NVIDIA GB10"
"""


@pytest.fixture
def builder(toolchain, tmp_path, monkeypatch):
    """scripts/kernels/build.py at work in a folder of its own, with the tools that are here."""
    module, home = script("kernels/build"), tmp_path / "kernels"
    for name, value in {
        "HOME": home,
        "INSTALLED": home / "installed",
        "RECORD": home / "installed/built.json",
        "PTH": tmp_path / "site/kernels.pth",
        "LOG": tmp_path / "kernels.log",
        "VERIFY": ("--device", "cpu", "--length", "20"),
    }.items():
        monkeypatch.setattr(module, name, value)
    (tmp_path / "site").mkdir()
    (home / "tools/bin").mkdir(parents=True)
    (home / "tools/sitecustomize.py").write_text(SPARK)
    if shutil.which("ninja"):
        (home / "tools/bin/ninja").symlink_to(shutil.which("ninja"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (12, 1))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "NVIDIA GB10")
    monkeypatch.setenv("CUDA_HOME", str(toolkit(tmp_path / "cuda")))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return module


def finds(builder) -> str:
    """What a Python that reads the site folder says about the kernels."""
    code = f"import site; site.addsitedir({str(builder.PTH.parent)!r})\n"
    code += "from shared.machine import kernels\nprint(kernels.present())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The sources of both packages as PyPI has them."""
    folder = tmp_path_factory.mktemp("published")
    env = {**os.environ, "CAUSAL_CONV1D_SKIP_CUDA_BUILD": "TRUE", "MAMBA_SKIP_CUDA_BUILD": "TRUE"}
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--no-binary", ":all:", "--no-deps", "--no-build-isolation"),
            *("--retries", "1", "--timeout", "30", "--dest", folder, *script_sources()),
        ],
        capture_output=True,
        text=True,
        env=env,
    )
    if done.returncode:
        pytest.skip(f"the sources cannot be fetched here: {done.stderr.strip().splitlines()[-1]}")
    return folder


def script_sources() -> list[str]:
    text = (ROOT / "pyproject.toml").read_text()
    return re.findall(r'"((?:causal-conv1d|mamba-ssm)==[^"]+)"', text)


@pytest.mark.skipif(not shutil.which("ninja"), reason="needs ninja, which `make kernels` installs for itself")
@pytest.mark.parametrize(("index", "objects"), [(0, 3), (1, 9)], ids=["causal-conv1d", "mamba-ssm"])
def test_the_real_sources_are_compiled_for_one_architecture_and_not_for_nine(
    builder, published, monkeypatch, tmp_path, capsys, index, objects
):
    requirement = script_sources()[index]
    (builder.HOME / "src").mkdir()
    for archive in published.glob("*.tar.gz"):
        shutil.copy(archive, builder.HOME / "src")
    # Compiles nothing, so that the real link line has nothing to fail on; g++ itself is asked for its version.
    compiler = f'case "$*" in *-o*) {COMPILE} ;; *) exec g++ "$@" ;; esac'
    monkeypatch.setenv("CXX", str(executable(tmp_path / "bin/g++", compiler)))
    wheel = builder.wheel(requirement, "12.1", tmp_path / "cuda", 1)
    calls = (tmp_path / "cuda/calls").read_text().splitlines()
    assert len(calls) == objects and wheel.suffix == ".whl"
    for call in calls:
        assert re.findall(r"arch=\S+", call) == ["arch=compute_121,code=sm_121"]
    assert f"{requirement}: {objects + 1} of {objects + 1} steps" in capsys.readouterr().out
    assert builder.wheel(requirement, "12.1", tmp_path / "cuda", 1) == wheel
    shutil.rmtree(builder.HOME / "wheels")  # as if it had been interrupted before the wheel was written
    assert builder.wheel(requirement, "12.1", tmp_path / "cuda", 1).exists()
    assert len((tmp_path / "cuda/calls").read_text().splitlines()) == objects, "what was compiled is kept"


def test_the_unchanged_source_would_compile_nine(published):
    """Otherwise the test above would show nothing."""
    for archive in published.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            text = tar.extractfile(f"{archive.name.removesuffix('.tar.gz')}/setup.py").read().decode()
        assert (
            len(set(re.findall(r"code=sm_\d+", text))) == 9 and "TORCH_CUDA_ARCH_LIST" not in text.split("gencode")[1]
        )


def test_a_source_that_lists_its_architectures_in_another_way_is_refused(builder, toolchain, tmp_path):
    (tmp_path / "setup.py").write_text('flags = ["-gencode=arch=compute_90,code=sm_90"]\n')
    assert "never tried" in stops(toolchain, builder.only_this_architecture, tmp_path / "setup.py")


# ---- whole or nothing -------------------------------------------------------------------------------------------

SETUP = "from setuptools import setup\nsetup(name={name!r}, version={version!r}, packages={packages!r})\n"


def sdist(folder, requirement: str, files: dict[str, str]) -> None:
    """A source package of this name and version."""
    package, version = requirement.split("==")
    stem = f"{package.replace('-', '_')}-{version}"
    files["setup.py"] = SETUP.format(
        name=package, version=version, packages=sorted({os.path.dirname(f).replace("/", ".") for f in files})
    )
    files["PKG-INFO"] = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
    for name, text in files.items():
        (folder / stem / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / stem / name).write_text(text)
    with tarfile.open(folder / f"{stem}.tar.gz", "w:gz") as tar:
        tar.add(folder / stem, stem)


# The library's own code under the packages' names; copied, since its module would give it away as the library's. It is
# copied at the first call, so that what only imports a package need not wait for torch.
COPY = """
import functools

@functools.cache
def library(name):
    import importlib.util
    from pathlib import Path
    import torch
    from transformers.activations import ACT2FN
    path = Path(importlib.util.find_spec("transformers").origin).parent / "models/mamba/modeling_mamba.py"
    text = path.read_text()
    text = text[text.index(f"def {name}("):]
    text = text[: text.index("\\n\\n\\n")]
    space = {"torch": torch, "F": torch.nn.functional, "ACT2FN": ACT2FN, "__name__": __name__, "nn": torch.nn,
             "is_torch_greater_or_equal": lambda v: False, "is_mambapy_available": lambda: False}
    exec(text, space)
    return space[name]

def copied(name):
    return lambda *args, **options: library(name)(*args, **options)
"""
INNER = """
def mamba_inner_fn(xz, weight, bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D, delta_bias, delta_softplus):
    x, z = xz.chunk(2, 1)
    x = copied("causal_conv1d_fn")(x, weight[:, 0], bias, "silu")
    delta, B, C = (x_proj @ x).split([dt_proj.shape[1], A.shape[1], A.shape[1]], 1)
    y = selective_scan_fn(x, dt_proj @ delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=True)
    return y.transpose(1, 2).to(xz.dtype) @ out_proj.T
"""


def package_files(fault: str = "") -> dict[str, dict[str, str]]:
    """The files of both packages, by package; `fault` is added to the scan's module."""
    conv = "".join(f"{name} = copied({name!r})\n" for name in ("causal_conv1d_fn", "causal_conv1d_update"))
    mamba = dict.fromkeys(("mamba_ssm", "mamba_ssm/ops", "mamba_ssm/ops/triton"), "")
    mamba["mamba_ssm/ops/selective_scan_interface"] = (
        COPY + 'selective_scan_fn = copied("mamba_selective_scan")\n' + INNER
    )
    mamba["mamba_ssm/ops/selective_scan_interface"] += fault
    mamba["mamba_ssm/ops/triton/selective_state_update"] = (
        COPY + 'selective_state_update = copied("mamba_selective_state_update")\n'
    )
    packages = ("mamba_ssm", "mamba_ssm/ops", "mamba_ssm/ops/triton")
    return {
        "causal-conv1d": {"causal_conv1d/__init__.py": COPY + conv},
        "mamba-ssm": {name + ("/__init__.py" if name in packages else ".py"): text for name, text in mamba.items()},
    }


@pytest.fixture
def small(builder, tmp_path, monkeypatch):
    """Both packages as small sources that pip finds in a folder, and nothing else."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setattr(builder, "SOURCES", builder.SOURCES[:2])
    (builder.HOME / "tools/sitecustomize.py").unlink()  # their setup.py asks torch nothing
    (builder.HOME / "tools/bin/ninja").unlink(missing_ok=True)
    (builder.HOME / "tools/bin/ninja").touch()
    for requirement, files in zip(builder.SOURCES, package_files().values(), strict=True):
        sdist(tmp_path / "index", requirement, files)
    return tmp_path / "index"


def test_kernels_are_built_checked_installed_recorded_and_removed(builder, small, capsys, monkeypatch):
    (mamba,) = small.glob("mamba_ssm*.tar.gz")
    mamba.rename(small / "away")
    assert builder.main(["build"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("No kernels: the download of mamba-ssm") and str(builder.LOG) in said
    assert said.count("\n") == 1 and finds(builder) == "[]"
    before = {path: path.stat().st_mtime_ns for path in (builder.HOME / "wheels").rglob("*.whl")}

    (small / "away").rename(mamba)
    assert builder.main(["build"]) == 0
    assert len(before) == 1 and all(path.stat().st_mtime_ns == then for path, then in before.items()), "wheel kept"
    out = capsys.readouterr().out
    assert "compiling for 12.1" in out and out.count("  right\n") == 10 and "Installed" in out
    assert finds(builder) == "['causal_conv1d', 'mamba_ssm']"
    record = json.loads(builder.RECORD.read_text())
    assert record["architecture"] == "12.1" and record["torch"] == torch.__version__ and record["gpu"] == "NVIDIA GB10"
    assert len(record["checks"]) == 10 and all(check["passed"] for check in record["checks"])
    assert not (builder.HOME / "trial").exists() and not (builder.HOME / "src").exists()

    monkeypatch.setattr(builder, "tools", lambda: pytest.fail("built again"))
    assert builder.main(["build"]) == 0 and "are built, checked and installed" in capsys.readouterr().out
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    with pytest.raises(pytest.fail.Exception, match="built again"):  # for another torch it has to be
        builder.main(["build"])

    assert builder.main(["remove"]) == 0 and "are removed" in capsys.readouterr().out
    assert finds(builder) == "[]" and not builder.HOME.exists() and not builder.PTH.exists()
    assert builder.main(["remove"]) == 0 and "There are no kernels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (
            "\nright = selective_scan_fn\n"
            "def selective_scan_fn(u, delta, A, B, C, D=None, **options):\n"
            "    return right(u, delta, A, B, C, **options)\n",
            "compute something else than they should (mamba_selective_scan, mamba_inner_fn",
        ),
        ("\nraise ImportError('undefined symbol: _ZN3c10')\n", "cannot be imported (ImportError: undefined symbol"),
        ("\nmamba_inner_fn.__module__ = 'transformers'\n", "does not take these from the kernels: mamba_inner_fn"),
    ],
    ids=["wrong", "broken", "not taken"],
)
def test_what_is_not_right_is_never_installed(builder, tmp_path, monkeypatch, capsys, fault, says):
    """The packages as pip would have put them into the trial folder."""

    def unpack(*arguments, **options):
        for files in package_files(fault).values():
            for name, text in files.items():
                (builder.HOME / "trial" / name).parent.mkdir(parents=True, exist_ok=True)
                (builder.HOME / "trial" / name).write_text(text)

    monkeypatch.setattr(builder, "tools", lambda: None)
    monkeypatch.setattr(builder, "wheel", lambda *arguments: tmp_path)
    monkeypatch.setattr(builder, "pip", unpack)
    assert builder.main(["build"]) == 1
    assert says in capsys.readouterr().err
    assert not builder.PTH.exists() and not builder.INSTALLED.exists()


@pytest.mark.parametrize("step", ["unlink", "rmtree", "rename"])
def test_an_installation_that_is_cut_off_leaves_no_kernels(builder, tmp_path, monkeypatch, step):
    """Stopped at each of its steps, with older kernels in place."""
    for folder in (builder.INSTALLED, builder.HOME / "trial"):
        (folder / "mamba_ssm").mkdir(parents=True)
    builder.PTH.write_text(f"{builder.INSTALLED}\n")
    pathlib = type(builder.PTH)

    def cut(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if step == "unlink":
            real = pathlib.unlink
            patched.setattr(pathlib, "unlink", lambda path, **options: (real(path, **options), cut()))
        elif step == "rmtree":
            patched.setattr(builder.shutil, "rmtree", cut)
        else:
            patched.setattr(pathlib, "rename", cut)
        with pytest.raises(KeyboardInterrupt):
            builder.install(builder.HOME / "trial")
    assert finds(builder) == "[]" and not builder.PTH.exists()


def test_an_interrupted_build_says_that_it_goes_on(builder, monkeypatch, capsys):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(builder, "tools", interrupted)
    assert builder.main(["build"]) == 130 and "goes on from here" in capsys.readouterr().err
    assert finds(builder) == "[]"
    builder.lock().close()  # and the next one may begin


def test_kernels_from_elsewhere_are_named_and_not_shadowed(builder, toolchain, monkeypatch, tmp_path):
    (tmp_path / "elsewhere/mamba_ssm").mkdir(parents=True)
    (tmp_path / "elsewhere/mamba_ssm/__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    assert "pip uninstall" in stops(toolchain, builder.check_others)


def test_two_builds_at_once_are_refused(builder, toolchain):
    with builder.lock():
        assert "another `make kernels` is at work" in stops(toolchain, builder.lock)
    builder.lock().close()
