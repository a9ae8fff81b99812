"""Builds Mamba's compiled kernels for this machine's GPU, checks them, and only then lets Python find them.

`make kernels` works in .venv/kernels: sources, wheels, then a trial folder in which the kernels are compared with
float64. The installation is the last step and a single file, a .pth in site-packages that names the folder: whatever
interrupts the work before leaves a course without kernels, and the next call goes on from there. `make kernels-remove`
takes all of it away.
"""

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
from importlib.util import find_spec
from pathlib import Path

from toolchain import Stop, architecture, check_compiler, check_disk, check_gpu, find_toolkit, jobs

from shared import files
from shared.files import BUILD, ROOT
from shared.machine import kernels, pool
from shared.notebooks import commands

HOME = Path(sys.prefix) / "kernels"
INSTALLED = HOME / "installed"  # what the .pth names
RECORD = INSTALLED / "built.json"
PTH = Path(sysconfig.get_path("purelib")) / "efficient-architectures-kernels.pth"
LOG = BUILD / "kernels.log"

VERIFY = ("--device", "cuda")
TOOLS = ("setuptools>=77", "wheel", "packaging", "ninja")
SOURCES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["kernels"]


def environment(**more: str) -> dict[str, str]:
    """For pip and what it starts: the build's own tools, no prebuilt wheel from elsewhere, nothing for the account."""
    path = os.pathsep.join([str(HOME / "tools/bin"), str(Path(sys.prefix) / "bin"), os.environ.get("PATH", "")])
    own = {"PYTHONPATH": str(HOME / "tools"), "PATH": path, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # Without the force both setups first ask a server for a wheel, made for another PyTorch.
    return {**os.environ, **own, "CAUSAL_CONV1D_FORCE_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE", **more}


def call(*command, what: str, env: dict, on_line=lambda line: None) -> None:
    """Run a command with its output in the log; Stop with its first error where it fails."""
    LOG.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            [str(part) for part in command], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process,
    ):
        for line in process.stdout:
            log.write(line)
            lines.append(line.strip())
            on_line(line)
    if process.returncode:
        errors = [line for line in lines if re.search(r"\berror\b|Error:", line, re.IGNORECASE)]
        raise Stop(f"{what} failed ({(errors or lines or ['it said nothing'])[0][:300]}): all of it stands in {LOG}.")


def pip(*arguments, what: str, env: dict, on_line=lambda line: None) -> None:
    call(sys.executable, "-m", "pip", *arguments, what=what, env=env, on_line=on_line)


def tools() -> None:
    """What a build needs, beside the course's own packages and not among them."""
    if not (HOME / "tools/bin/ninja").exists():
        shutil.rmtree(HOME / "tools", ignore_errors=True)
        pip("install", "--target", HOME / "tools", *TOOLS, what="the download of the build's tools", env=environment())


def only_this_architecture(setup: Path) -> None:
    """Take the list of nine architectures out of a package's setup.py.

    As long as a `-gencode` stands there, torch's own choice, which TORCH_CUDA_ARCH_LIST steers, does not apply.
    """
    text, count = re.subn(r'cc_flag\.append\("(?:-gencode|arch=[^"]*)"\)', "pass", setup.read_text())
    if not count and "compute_" in text:
        raise Stop(f"{setup} lists its architectures in a way that is not known here: this version was never tried.")
    files.write(setup, text)


def check_others() -> None:
    """Kernels that were installed in another way come first on the path: ours would be built and never run."""
    for package in kernels.PACKAGES:
        spec = find_spec(package)
        if spec and not Path(spec.origin or "").is_relative_to(HOME):
            raise Stop(
                f"{package} is installed already, in {Path(spec.origin or '?').parent}: keep it (`make doctor` tells "
                "whether it works), or `.venv/bin/python -m pip uninstall causal-conv1d mamba-ssm` and try again."
            )


def source(requirement: str) -> Path:
    """The unpacked source of a package, made ready to compile; fetched where it is not there yet."""
    package, version = requirement.split("==")
    name = f"{package.replace('-', '_')}-{version}"
    folder, archive = HOME / "src" / name, HOME / "src" / f"{name}.tar.gz"
    if not archive.exists():
        # pip runs setup.py for the name in it, which must not look for nvcc yet.
        env = environment(CAUSAL_CONV1D_SKIP_CUDA_BUILD="TRUE", MAMBA_SKIP_CUDA_BUILD="TRUE")
        options = ("--no-binary", ":all:", "--no-deps", "--no-build-isolation", "--dest", archive.parent)
        pip("download", *options, requirement, what=f"the download of {requirement}", env=env)
    if not folder.exists():
        part = folder.with_name(f".{name}")
        shutil.rmtree(part, ignore_errors=True)
        with tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
        only_this_architecture(part / name / "setup.py")
        (part / name).rename(folder)
        part.rmdir()
    return folder


def wheel(requirement: str, arch: str, toolkit: Path, at_once: int) -> Path:
    """The wheel of a package, built where it is not there yet. What an interrupted build compiled is kept."""
    folder = HOME / "wheels" / requirement
    if found := list(folder.glob("*.whl")):
        return found[0]
    begun = time.monotonic()

    def progress(line: str) -> None:
        if step := re.match(r"\s*\[(\d+)/(\d+)\] ", line):
            minutes = (time.monotonic() - begun) / 60
            print(f"  {requirement}: {step[1]} of {step[2]} steps, {minutes:.0f} min", flush=True)

    where = source(requirement)
    print(f"  {requirement}: compiling for {arch}, {at_once} at once", flush=True)
    env = environment(CUDA_HOME=str(toolkit), TORCH_CUDA_ARCH_LIST=arch, MAX_JOBS=str(at_once))
    part = folder.with_name(f".{requirement}")
    shutil.rmtree(part, ignore_errors=True)
    options = ("-v", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", part)
    pip("wheel", *options, where, what=f"the build of {requirement}", env=env, on_line=progress)
    part.rename(folder)
    return next(folder.glob("*.whl"))


def verified(env: dict) -> list[dict]:
    """The comparison of the kernels in the trial folder with float64; Stop where one is wrong or did not run."""
    state, why = kernels.status(env)
    if state != "installed":
        raise Stop(f"the kernels were built and cannot be imported ({why}): please report it with {LOG}.")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("verify.py"), *VERIFY], env=env, capture_output=True, text=True
    )
    if done.returncode:
        raise Stop(f"the comparison of the kernels ended with: {done.stderr.strip().splitlines()[-1]}.")
    checks = json.loads(done.stdout)
    for check in checks:
        verdict = "right" if check["passed"] else f"WRONG: {check['worst']}"
        print(f"  {check['name']:<30}{check['dtype']:<10} largest error {check['error']:.1e}  {verdict}")
    ran = {check["name"] for check in checks if check["code"].split(".")[0] in kernels.PACKAGES}
    if lacking := set(kernels.FUNCTIONS) - ran:
        raise Stop(f"transformers does not take these from the kernels: {', '.join(sorted(lacking))}.")
    if wrong := [check["name"] for check in checks if not check["passed"]]:
        raise Stop(f"the kernels compute something else than they should ({', '.join(wrong)}): nothing was installed.")
    return checks


def install(trial: Path) -> None:
    """Put the trial folder where the .pth names it. Until the last line there are no kernels, whatever happens."""
    PTH.unlink(missing_ok=True)
    shutil.rmtree(INSTALLED, ignore_errors=True)
    trial.rename(INSTALLED)
    files.write(PTH, f"{INSTALLED}\n")


def build() -> None:
    """Everything that `make kernels` does."""
    import torch

    capability = check_gpu()
    check_others()
    toolkit = find_toolkit(torch.version.cuda)
    arch = architecture(capability, toolkit)
    check_compiler(torch.version.cuda)
    at_once = int(os.environ.get("MAX_JOBS") or jobs(os.cpu_count() or 1, pool.available("cpu")))
    check_disk(HOME.parent)
    made = {"packages": SOURCES, "architecture": arch, "torch": torch.__version__, "cuda": torch.version.cuda}
    made |= {"python": platform.python_version(), "machine": platform.machine(), "toolkit": str(toolkit)}
    if PTH.exists() and RECORD.exists() and made.items() <= json.loads(RECORD.read_text()).items():
        print("The kernels are built, checked and installed; `make kernels-remove` takes them away.")
        return
    with lock():
        if not (note := HOME / "for.json").exists() or json.loads(note.read_text()) != made:
            for part in ("src", "wheels"):  # made for something else
                shutil.rmtree(HOME / part, ignore_errors=True)
            files.write(note, json.dumps(made))
        LOG.unlink(missing_ok=True)
        print(f"Building {' and '.join(SOURCES[:2])} for {torch.cuda.get_device_name()} (log: {LOG})", flush=True)
        shutil.rmtree(trial := HOME / "trial", ignore_errors=True)
        tools()
        wheels = [wheel(requirement, arch, toolkit, at_once) for requirement in SOURCES[:2]]
        rest = ("--no-deps", *wheels, *SOURCES[2:])
        pip("install", "--target", trial, *rest, what="the trial installation", env=environment())
        print("Comparing with float64, forward and backward:", flush=True)
        checks = verified({**os.environ, "PYTHONPATH": str(trial)})
        record = made | {
            "date": datetime.date.today().isoformat(),
            "gpu": torch.cuda.get_device_name(),
            "checks": checks,
        }
        files.write(trial / RECORD.name, json.dumps(record, indent=1))
        install(trial)
        for part in ("src", "tools"):
            shutil.rmtree(HOME / part, ignore_errors=True)
    print("Installed: Mamba runs its kernels on the GPU from the next start of a notebook's kernel on.")


def lock():
    """Two builds at once would overwrite each other."""
    HOME.mkdir(parents=True, exist_ok=True)
    held = files.lock(HOME.parent / "kernels.lock")
    if not held:
        raise Stop("another `make kernels` is at work in this folder: wait until it ends.")
    return held


def remove() -> None:
    """Everything that `make kernels-remove` does."""
    there = PTH.exists() or HOME.exists()
    with lock():
        PTH.unlink(missing_ok=True)  # first: from here on nothing imports them
        shutil.rmtree(HOME)
    Path(HOME.parent / "kernels.lock").unlink(missing_ok=True)
    print("The kernels are removed." if there else "There are no kernels of `make kernels` here.")


@commands.program("Interrupted: nothing was installed, and `make kernels` goes on from here.")
def main(arguments: list[str] | None = None) -> int:
    parser = commands.Parser(__doc__)
    parser.add_argument("command", choices=("build", "remove"))
    command = parser.parse_args(arguments).command
    try:
        build() if command == "build" else remove()
    except Stop as stop:
        print(f"No kernels: {stop}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
