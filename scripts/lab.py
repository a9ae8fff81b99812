"""Opens JupyterLab on the labs: on this machine only, with its token (`make lab`)."""

import argparse
import errno
import os
import re
import socket
import sys
from pathlib import Path

from shared import notebooks

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


def port_of(text: str) -> int:
    """The port that PORT names, which is free; the program ends with one sentence where it cannot be used."""
    if not re.fullmatch("[0-9]{1,5}", text) or int(text) not in PORTS:
        sys.exit(f"PORT={text} is no port; choose a number from 1 to {PORTS[-1]}: make lab PORT=8889")
    port = int(text)
    why = refusal(port)
    if not why:
        return port
    free = next(other for other in (*PORTS[port:], *PORTS[8888:]) if not refusal(other))
    what = "is not for this user;" if why == errno.EACCES else "is taken, perhaps by a lab still open; close it or"
    sys.exit(f"Port {port} {what} choose another port: make lab PORT={free}")


def first_page(folder: Path, lab: str) -> str:
    """The address to open: the notebook of `lab` (2.4.1), or the first one, or the file browser where there is none."""
    if not folder.is_dir():
        sys.exit(f"NOTEBOOK_DIR={folder} is no folder; a bare `make lab` opens labs/.")
    labs = notebooks.labs(folder)
    if lab and lab not in labs:
        sys.exit(f"There is no lab {lab} in {folder}; a bare `make lab` opens the first one.")
    path = labs.get(lab) or next(iter(labs.values()), None)
    return f"/lab/tree/{path.name}" if path else "/lab"


def switch_off_announcements() -> None:
    """Keep JupyterLab from asking about its news feed and from looking for updates: a setting inside .venv."""
    config = Path(sys.prefix) / "etc" / "jupyter" / "labconfig" / "page_config.json"
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", default="8888")
    parser.add_argument("--browser", default="yes", help="yes or no")
    parser.add_argument("--lab", default="", help="2.4.1, for example")
    args = parser.parse_args()

    page = first_page(args.folder, args.lab)
    if args.browser not in ("yes", "no"):
        sys.exit(f"BROWSER={args.browser} is unknown; it is yes or no.")
    port = port_of(args.port)
    switch_off_announcements()
    # Two torch threads on two shared cores made small operations 40 to 100 times slower.
    if (os.cpu_count() or 1) <= 2:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [
        *(sys.executable, "-m", "jupyterlab", str(args.folder.resolve())),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--LabApp.default_url={page}",
        # jupyter-lsp would run npm to look for language servers, and npm writes into the home folder.
        "--LanguageServerManager.autodetect=False",
        "--log-level=WARN",
        "--LabApp.log_level=WARN",
    ]
    if args.browser == "no":
        command.append("--no-browser")
    if os.geteuid() == 0:  # in a container, root is often the only user, and Jupyter wants to be told
        command.append("--allow-root")
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
