"""The page of `make doctor`: what this machine can run, what not, and for each "no" the command that changes it."""

import json
import os
import re
import shlex
import sys
import textwrap
from pathlib import Path

from shared.notebooks import commands
from shared.units import human  # nothing that imports torch: see `main`

WIDTH, LABEL = 100, 12


def line(label: str, text: str) -> str:
    """A label and its text, wrapped beside it."""
    indent = " " * LABEL
    return textwrap.fill(f"{label:<{LABEL}}{text}", WIDTH, subsequent_indent=indent, break_on_hyphens=False)


def foreign_cudnn() -> dict | None:
    """Which folders of LD_LIBRARY_PATH hold a cuDNN, and the command that changes it; None where none does.

    The loader takes it for the one that PyTorch brings, and PyTorch may abort at import, without a sentence.
    """
    entries = [entry for entry in re.split("[:;]", os.environ.get("LD_LIBRARY_PATH", "")) if entry]
    own = Path(sys.prefix).resolve()  # the packages of this environment are not foreign
    foreign = []
    for entry in dict.fromkeys(entries):
        holds = any(Path(entry).glob("libcudnn*.so*"))
        if holds and not Path(entry).resolve().is_relative_to(own):
            foreign.append(entry)
    if not foreign:
        return None
    others = ":".join(entry for entry in entries if entry not in foreign)
    return {
        "why": f"LD_LIBRARY_PATH names {' and '.join(foreign)}, with a cuDNN that is not PyTorch's: importing PyTorch "
        "may abort",
        "change": f"export LD_LIBRARY_PATH={shlex.quote(others)}" if others else "unset LD_LIBRARY_PATH",
    }


def section(label: str, lines, found: dict, *others) -> list[str]:
    """The lines of a section, or the one that says why it could not be read."""
    return [line(label, found["unread"])] if "unread" in found else lines(found, *others)


def machine_lines(found: dict) -> list[str]:
    packages = ", ".join(f"{name} {number or 'not installed'}" for name, number in found["packages"].items())
    return [
        line("Machine", f"{found['system']}; {found['processor']}" + (f"; {found['dgx']}" if found["dgx"] else "")),
        line("Packages", packages),
    ]


def disk_lines(found: dict) -> list[str]:
    kept = ", ".join(f"{name} {human(size)}" for name, size in found["cached"].items()) or "nothing of the course yet"
    room = f"{human(found['cache_free'])} free in {found['cache']}"
    if found["cache_closed"]:
        room = f"{found['cache']} cannot be made or written in ({found['cache_closed']})"
    lines = [
        line("Disk", f"{human(found['course_free'])} free for the course in {found['course']}"),
        line("Cache", f"{room}; {kept} (make cache tells more)"),
    ]
    return lines + ([line("", "-> export HF_HOME=<a folder that you may write in>")] if found["cache_closed"] else [])


def gpu_lines(found: dict) -> list[str]:
    if not found["name"]:
        return [line("GPU", f"no: {found['why']}"), line("", f"-> {found['change']}")]
    kind = "one memory for CPU and GPU (unified)" if found["unified"] else "memory of its own"
    text = f"{found['name']}, compute capability {found['capability']}, {human(found['memory_bytes'])}, {kind}"
    lines = [line("GPU", f"{text}; driver {found['driver'] or 'unknown'}, PyTorch for CUDA {found['cuda']}")]
    lines.append(line("", f"{found.get('code') or found['why']} ({' '.join(found['architectures'])})"))
    return lines + ([line("", f"-> {found['change']}")] if found["why"] else [])


def kernel_lines(found: dict) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    text = " ".join(filter(None, [found["status"], versions and f"({versions})"]))
    text += f": {found['why']}" if found["why"] else ""
    if found["status"] != "installed":
        text += "; Mamba's scan runs in plain PyTorch: the course's or, without that, transformers' loop"
    elif built := found.get("built"):
        wrong = [check["name"] for check in built["checks"] if not check["passed"]]
        verdict = (
            f"wrong: {', '.join(wrong)}" if wrong else f"all {len(built['checks'])} comparisons with float64 right"
        )
        text += f", built for {built['architecture']} on {built['date']}, {verdict}"
    else:
        text += ", not built by `make kernels`, so nobody compared them here"
    return [line("Kernels", text)] + ([line("", f"-> {found['change']}")] if "change" in found else [])


def memory_lines(found: dict, device: dict) -> list[str]:
    text = f"{human(found['available'])} of {human(found['total'])} available"
    if "free" in found:
        text += f"; {human(found['free'])} free, and page cache {human(found['page_cache'])}, which Linux gives back "
        text += f"when it is needed ({human(found['dirty'])} are not on the disk yet)"
    lines = [line("Memory", text)]
    if "reserve" in found:
        text = f"CPU and GPU share it: loads and sweeps leave {human(found['reserve'])} available, and a cell is "
        lines.append(line("", text + f"stopped below {human(found['floor'])}"))
        if found["free"] < found["reserve"]:
            lines.append(line("", "CUDA counts the page cache as used, and may not start beside a large one"))
            lines.append(line("", "-> sync; echo 1 | sudo tee /proc/sys/vm/drop_caches"))
    if device["name"] and not device["unified"]:
        lines.append(
            line("", f"on the GPU {human(found['device_available'])} of {human(device['memory_bytes'])} available")
        )
    for row in found["holders"]:
        what = row["notebook"] or row["name"]
        on_gpu = f", {human(row['gpu_bytes'])} on the GPU" if row["gpu_bytes"] else ""
        lines.append(line("", f"{human(row['resident_bytes']):>8}{on_gpu} held by {what} (pid {row['pid']})"))
    if any(row["notebook"] for row in found["holders"]):
        lines.append(line("", "-> Kernel > Shut Down Kernel in JupyterLab gives a notebook's memory back"))
    swap = f"{human(found['swap_free'])} of {human(found['swap_total'])} free" if found["swap_total"] else "none"
    return [
        *lines,
        line("Swap", swap + ("; not counted as memory" if found["swap_total"] else "")),
    ]


def lab_lines(rows: list[dict]) -> list[str]:
    lines = [f"{'Lab':<7}{'scale':<7}{'runs here':<11}{'memory':<10}{'time':<28}models"]
    for row in rows:
        needed = row.get("peak_bytes") or row["memory_bytes"]
        size = human(needed) if needed else ""
        runs = "yes" if row["runs"] else "no"
        head = f"{row['lab']:<7}{row['scale']:<7}{runs:<11}{size:<10}{row['minutes']:<28}"
        lines.append((head + (", ".join(row["models"]) or "none")).rstrip())
        if not row["runs"]:
            lines.append(textwrap.fill(row["why"], WIDTH, initial_indent=" " * 14, subsequent_indent=" " * 14))
            lines.append(f"{'':<14}-> {row['change']}")
    return lines


def solved_lines(found: dict) -> list[str]:
    """How far a student has come: exercises that the checks have found right."""
    return [line("Solved", ", ".join(f"{lab}: {done} of {there}" for lab, (done, there) in found.items()))]


def full_line(rows: list[dict]) -> str:
    """For which machine time and memory at scale full are computed, and from what."""
    machine = next((row["forecast_for"] for row in rows if "forecast_for" in row), None)
    if machine is None:
        return "scale full: nothing is computed, since no lab can be read"
    if machine == "this machine":
        return "scale full: time and peak memory as computed for this machine, from three rates measured on it"
    return f"scale full: time and peak memory as computed for a {machine}, since no GPU answers here; not measured"


def page(found: dict) -> str:
    """The facts for a reader in a terminal of 100 columns."""
    lines = [
        "What this machine can run, and what changes each no (->). Put this page into a report of a problem.",
        "",
        *section("Machine", machine_lines, found["machine"]),
        *gpu_lines(found["gpu"]),
        *section("Kernels", kernel_lines, found["kernels"]),
        *section("Memory", memory_lines, found["memory"], found["gpu"]),
        *section("Disk", disk_lines, found["disk"]),
        "",
        *lab_lines(found["labs"]),
        line("", full_line(found["labs"])),
        *section("Solved", solved_lines, found["solved"]),
        "",
        "Not run on a DGX Spark yet. The same facts for programs: make doctor JSON=yes",
    ]
    return "\n".join(lines)


@commands.program()
def main(arguments: list[str] | None = None) -> None:
    parser = commands.Parser(__doc__)
    yes_or_no = commands.one_of("JSON", ("yes", "no", ""))
    parser.add_argument("--json", nargs="?", const="yes", type=yes_or_no, help="the facts as JSON: yes or no")
    options = parser.parse_args(arguments)
    as_json = options.json == "yes"
    foreign = foreign_cudnn()
    if foreign:
        # Before torch is imported: after that nothing may be printed any more. JSON stays JSON.
        stream = sys.stderr if as_json else sys.stdout
        print(line("cuDNN", foreign["why"]), f"{'':<{LABEL}}-> {foreign['change']}", sep="\n", file=stream, flush=True)
    import facts

    found = facts.facts()
    found["gpu"]["foreign_cudnn"] = foreign
    print(json.dumps(found, indent=1) if as_json else page(found))


if __name__ == "__main__":
    sys.exit(main())
