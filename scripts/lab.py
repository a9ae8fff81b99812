"""Opens JupyterLab on the labs: on this machine only, with its token (`make lab`)."""

import errno
import os
import socket
import sys
from pathlib import Path

from shared import files, notebooks
from shared.errors import BadInput, CourseError
from shared.notebooks import commands

PORTS = range(1, 2**16)


def refusal(port: int) -> int:
    """The number of the error with which localhost refuses this port, 0 where it is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return error.errno
    return 0


def check_port(port: int) -> None:
    """Raise CourseError, with a port that is free, where this one cannot be used."""
    if why := refusal(port):
        free = next(other for other in (*PORTS[port:], *PORTS[8888:]) if not refusal(other))
        what = "is not for this user;" if why == errno.EACCES else "is taken, perhaps by a lab still open; close it or"
        raise CourseError(f"Port {port} {what} choose another port: make lab PORT={free}")


def folder_of(text: str) -> Path:
    """The folder that NOTEBOOK_DIR names; BadInput where there is none."""
    folder = os.path.expanduser(text)
    if not os.path.isdir(folder):
        raise BadInput(f"NOTEBOOK_DIR={text} is no folder; a bare `make lab` opens labs/.")
    return Path(folder)


def first_page(folder: Path, lab: str) -> str:
    """The address to open: the notebook of `lab` (2.4.1), or the first one, or the file browser where there is none."""
    labs = notebooks.labs(folder)
    if lab and lab not in labs:
        raise BadInput(f"There is no lab {lab} in {folder}; a bare `make lab` opens the first one.")
    path = labs.get(lab) or next(iter(labs.values()), None)
    return f"/lab/tree/{path.name}" if path else "/lab"


def switch_off_announcements() -> None:
    """Keep JupyterLab from asking about its news feed and from looking for updates: a setting inside .venv."""
    config = Path(sys.prefix) / "etc" / "jupyter" / "labconfig" / "page_config.json"
    if not config.exists():
        files.write(config, '{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}\n')


@commands.program()
def main(arguments: list[str] | None = None) -> None:
    """Replace this process with JupyterLab's, or end it with one sentence."""
    parser = commands.Parser(__doc__)
    parser.add_argument("folder", help="with notebooks")
    parser.add_argument("--port", default=8888, type=commands.whole("PORT", most=PORTS[-1]))
    parser.add_argument("--browser", default="yes", type=commands.one_of("BROWSER", ("yes", "no")), help="yes or no")
    parser.add_argument("--lab", default="", help="2.4.1, for example")
    options = parser.parse_args(arguments)
    folder = folder_of(options.folder)
    page = first_page(folder, options.lab)
    check_port(options.port)
    switch_off_announcements()
    # Two torch threads on two shared cores made small operations 40 to 100 times slower.
    if (os.cpu_count() or 1) <= 2:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [
        *(sys.executable, "-m", "jupyterlab", str(folder.resolve())),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={options.port}",
        "--ServerApp.port_retries=0",
        f"--LabApp.default_url={page}",
        # jupyter-lsp would run npm to look for language servers, and npm writes into the home folder.
        "--LanguageServerManager.autodetect=False",
        "--log-level=WARN",
        "--LabApp.log_level=WARN",
    ]
    if options.browser == "no":
        command.append("--no-browser")
    if os.geteuid() == 0:  # in a container, root is often the only user, and Jupyter wants to be told
        command.append("--allow-root")
    os.execv(sys.executable, command)


if __name__ == "__main__":
    sys.exit(main())
