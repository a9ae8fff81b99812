"""Opens JupyterLab on the labs: on this machine only, with its token (`make lab`)."""

import argparse
import os
import socket
import sys
from pathlib import Path


def taken(port: int) -> bool:
    """Whether something listens on this port of localhost."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def first_page(folder: Path, lab: str) -> str:
    """The address to open: the notebook of `lab` (2.4.1), or the first one, or the file browser where there is none."""
    notebooks = sorted(folder.glob(f"lab-{lab}*.ipynb"))
    if lab and not notebooks:
        sys.exit(f"There is no lab {lab} in {folder}; a bare `make lab` opens the first one.")
    return f"/lab/tree/{notebooks[0].name}" if notebooks else "/lab"


def switch_off_announcements() -> None:
    """Keep JupyterLab from asking about its news feed and from looking for updates: a setting inside .venv."""
    config = Path(sys.prefix) / "etc" / "jupyter" / "labconfig" / "page_config.json"
    if not config.exists():
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=8888)
    parser.add_argument("--browser", choices=["yes", "no"], default="yes")
    parser.add_argument("--lab", default="", help="2.4.1, for example")
    args = parser.parse_args()

    page = first_page(args.folder, args.lab)
    if taken(args.port):
        sys.exit(
            f"Port {args.port} is taken, perhaps by a lab that is still open; "
            f"close it or choose another port: make lab PORT={args.port + 1}"
        )
    switch_off_announcements()
    # Two torch threads on two shared cores made small operations 40 to 100 times slower.
    if (os.cpu_count() or 1) <= 2:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    command = [
        *(sys.executable, "-m", "jupyterlab", str(args.folder.resolve())),
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.port={args.port}",
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
