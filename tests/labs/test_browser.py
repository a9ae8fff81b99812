"""JupyterLab as `make lab` starts it, and a student's first minutes in it, in headless Chromium.

Chromium is Debian's (scripts/test-packages.sh installs it); without it these tests skip, and on CI they fail.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from conftest import CHROMIUM, CHROMIUM_FLAGS

from shared import files, notebooks

pytestmark = pytest.mark.slow

SCREENSHOTS = files.ROOT / "build" / "browser"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(**more: str) -> dict[str, str]:
    """This environment without what the make that runs these tests put into it."""
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "PYTHON", "TORCH_INDEX_URL", "JUPYTER_TOKEN")
    return {name: value for name, value in os.environ.items() if name not in outer} | more


@contextmanager
def lab(folder: Path, log: Path, **more: str) -> Iterator[str]:
    """`make lab` on this folder, as on a remote machine; gives the address with its token, and ends it afterwards."""
    command = ["make", "lab", "BROWSER=no", f"PORT={free_port()}", f"NOTEBOOK_DIR={folder}"]
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=files.ROOT,
            env=environment(**more),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+token=\w+", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield found.group()
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def status(url: str) -> int:
    """HTTP status of a page, redirects not followed."""

    class Stay(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, *args):
            return None

    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({}), Stay).open(url, timeout=20).status
    except urllib.error.HTTPError as answer:
        return answer.code


def addresses_of(port: int) -> set[str]:
    """The addresses on which something listens on this port (Linux: from /proc)."""
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}


# --- The server -------------------------------------------------------------------------------------------------------


def test_lab_listens_on_localhost_only_wants_its_token_and_leaves_the_home_folder_alone(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    # A token switched off in the home folder's configuration or in the environment must not reach the course.
    (home / ".jupyter").mkdir()
    (home / ".jupyter" / "jupyter_server_config.py").write_text("c.IdentityProvider.token = ''\nc.ServerApp.ip = '*'\n")
    before = set(home.rglob("*"))
    with lab(tmp_path, tmp_path / "log", HOME=str(home), JUPYTER_TOKEN="") as url:
        address, token = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/lab\S*\?token=(\w{32,})", url).groups()
        port = int(address.rsplit(":", 1)[1])
        assert status(f"{address}/api/contents?token={token}") == 200
        assert status(f"{address}/api/contents") == 403
        assert status(f"{address}/api/contents?token={'0' * len(token)}") == 403
        assert status(f"{address}/lab") == 302, "to the page that asks for the token"
        if sys.platform == "linux":
            assert addresses_of(port) == {"0100007F"}, "127.0.0.1, in the kernel's byte order"

        taken = subprocess.run(
            ["make", "lab", "BROWSER=no", f"PORT={port}"],
            cwd=files.ROOT,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert taken.returncode != 0 and "Traceback" not in taken.stderr
        assert f"Port {port} is taken" in taken.stderr and f"make lab PORT={port + 1}" in taken.stderr
    assert set(home.rglob("*")) == before


def test_lab_that_does_not_exist_is_refused_in_one_sentence(tmp_path):
    command = ["make", "lab", "BROWSER=no", "LAB=9.9.9", f"NOTEBOOK_DIR={tmp_path}"]
    result = subprocess.run(command, cwd=files.ROOT, env=environment(), capture_output=True, text=True)
    assert result.returncode != 0
    assert "There is no lab 9.9.9" in result.stderr and "Traceback" not in result.stderr


# --- The browser ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """What stood on the page after Run All Cells; of each figure its alternative text."""

    code_cells: int
    waiting: int
    executed: int
    figures: list[str]
    errors: list[str]


# JupyterLab marks a traceback like everything else on stderr; a warning alone is no error.
COUNT = """() => {
    const cells = [...document.querySelectorAll('.jp-NotebookPanel .jp-CodeCell')];
    const prompts = cells.map(cell => cell.querySelector('.jp-InputPrompt').innerText);
    const outputs = mime => cells.flatMap(cell => [...cell.querySelectorAll(`[data-mime-type^="${mime}"]`)]);
    return {
        code_cells: cells.length,
        waiting: prompts.filter(prompt => prompt.includes('*')).length,
        executed: prompts.filter(prompt => /[0-9]/.test(prompt)).length,
        figures: cells.flatMap(cell => [...cell.querySelectorAll('.jp-OutputArea-output img')]).map(img => img.alt),
        errors: outputs('application/vnd.jupyter.stderr').map(output => output.innerText)
                                                         .filter(text => /Traceback|Error:/.test(text)),
    };
}"""


@contextmanager
def opened(url: str, notebook: str) -> Iterator:
    """A page of JupyterLab with this notebook of the lab, and its kernel at rest."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        address, token = re.match(r"(http://[^/]+)/.*token=(\w+)", url).groups()
        page.goto(f"{address}/lab/tree/{notebook}?token={token}&reset")  # no notebook of an earlier visit
        page.wait_for_selector(".jp-NotebookPanel .jp-CodeCell")
        # Before its kernel is connected, a notebook answers Run All Cells with the question which kernel to take.
        page.wait_for_selector(".jp-NotebookPanel .jp-KernelName:has-text('Python 3')")
        page.wait_for_selector(".jp-NotebookPanel [data-status=idle]")
        yield page
        browser.close()


def run_all_cells(url: str, notebook: str, screenshot: Path, minutes: float = 5, then=lambda page: None) -> Seen:
    """Opens a notebook of the lab, runs all its cells by the menu, waits for the last, does `then`, takes a picture."""
    with opened(url, notebook) as page:
        page.locator(".lm-MenuBar-itemLabel", has_text=re.compile("^Run$")).click()
        page.locator(".lm-Menu-itemLabel", has_text=re.compile("^Run All Cells$")).click()
        deadline = time.monotonic() + minutes * 60
        while not (seen := page.evaluate(COUNT))["executed"] or seen["waiting"]:
            assert time.monotonic() < deadline, f"the notebook still runs after {minutes} minutes: {seen}"
            page.wait_for_timeout(500)

        then(page)
        # The notebook scrolls inside the page: a window as high as its content shows all of it.
        content = page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollHeight")
        page.set_viewport_size({"width": 1280, "height": min(content + 150, 16_000)})
        page.evaluate("() => document.querySelector('.jp-WindowedPanel-outer').scrollTo(0, 0)")
        page.wait_for_timeout(500)
        screenshot.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=screenshot)
    return Seen(**seen)


@pytest.fixture(scope="module")
def served(chromium, tmp_path_factory) -> Iterator[tuple[Path, str, Path]]:
    """A folder, the address under which `make lab` serves it, and the home folder that Jupyter and its kernels see."""
    folder, home = tmp_path_factory.mktemp("served"), tmp_path_factory.mktemp("home")
    # By default JupyterLab keeps in the page only the cells on the screen; these tests count all of them.
    settings = tmp_path_factory.mktemp("settings")
    tracker = settings / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    tracker.parent.mkdir(parents=True)
    tracker.write_text(json.dumps({"windowingMode": "none"}))
    log, build = tmp_path_factory.mktemp("log") / "log", tmp_path_factory.mktemp("build")
    own = {"JUPYTERLAB_SETTINGS_DIR": str(settings), "COURSE_BUILD": str(build)}  # others read what `make run` saved
    own["COURSE_PROGRESS"] = ""  # here is a student at work
    with lab(folder, log, HOME=str(home), OMP_NUM_THREADS="1", **own) as url:
        yield folder, url, home


def write_notebook(path: Path, *cells: str) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.mark.browser
def test_error_in_a_notebook_is_seen_and_the_home_folder_stays_empty(served, tmp_path):
    folder, url, home = served
    figure = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    write_notebook(folder / "broken.ipynb", figure, "1 / 0", "print('never reached')")
    seen = run_all_cells(url, "broken.ipynb", tmp_path / "broken.png")
    assert (seen.code_cells, seen.executed, len(seen.figures)) == (3, 2, 1)
    assert len(seen.errors) == 1 and "ZeroDivisionError" in seen.errors[0]
    assert list(home.iterdir()) == []


@pytest.mark.browser
def test_a_solved_lab_runs_without_an_error_shows_its_figures_and_answers_what_is_typed_into_it(served):
    """Lab 2.4.3: it has all that the others have, and a field to type in."""
    folder, url, _ = served
    path = folder / "lab-2.4.3-solved.ipynb"
    solve = [sys.executable, "-m", "shared.notebooks", "solve", "--lab", "2.4.3", "--out", str(path)]
    subprocess.run(solve, cwd=files.ROOT, check=True)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id != "give-back"]  # who types needs the model
    notebooks.change_settings(notebook, "tiny", {"permutations": 99, "subsets": 3})  # shorter, but all of it
    nbformat.write(notebook, path)

    def work(page):
        shown = page.locator(".widget-html-content")
        page.locator(".jp-OutputArea-output textarea").fill("def area(x): return x * x")
        page.keyboard.press("Tab")
        shown.locator("span[title^=\"'def'\"]").wait_for()
        deep = shown.inner_html()
        page.locator(".jp-OutputArea-output select").select_option("0")
        page.wait_for_function("deep => document.querySelector('.widget-html-content').innerHTML !== deep", arg=deep)
        assert shown.locator("span").count() == deep.count("<span")  # the same tokens, in another layer

    seen = run_all_cells(url, path.name, SCREENSHOTS / "lab-2.4.3-solved.png", then=work)
    assert seen.errors == []
    folded = sum("jupyter" in cell.metadata for cell in notebook.cells)  # JupyterLab shows no number beside these
    assert seen.executed + folded == seen.code_cells > folded > 0
    # Each figure has its words also here, where a screen reader looks for them.
    assert len(seen.figures) >= 3 and all(len(alt) > 40 for alt in seen.figures), seen.figures


@pytest.mark.browser
def test_a_student_with_a_keyboard_alone_errs_is_told_so_gets_it_right_and_finds_it_solved_after_a_restart(served):
    folder, url, _ = served
    notebook = notebooks.read("2.4.1")
    exercise = ["first-exercise", "ex-kv-cache-bytes", "check-kv-cache-bytes", "mamba-state"]
    notebook.cells = [cell for cell in notebook.cells if cell.id in ("machine", *exercise)]
    notebook.cells.insert(0, nbformat.v4.new_code_cell("from shared.kits import lab"))
    nbformat.write(notebook, folder / "student.ipynb")
    right = notebooks.answers("2.4.1")["ex-kv-cache-bytes"]
    wrong = right.replace("return 2 * ", "return ")
    assert wrong != right
    machine, answer, check = 1, 3, 4  # places of the cells

    with opened(url, "student.ipynb") as page:
        keys = page.keyboard

        def said(place: int, words: str) -> str:
            """What a cell printed, as soon as these words are in it."""
            output = page.locator(".jp-Notebook .jp-Cell").nth(place).locator(".jp-OutputArea-output")
            output.filter(has_text=words).first.wait_for()
            return "\n".join(output.all_inner_texts())

        def write_and_check(source: str) -> None:
            for key in ("Enter", "Control+a"):
                keys.press(key)
            keys.insert_text(source)
            for _ in ("the answer", "its check"):
                keys.press("Shift+Enter")

        keys.press("Escape")
        for _ in range(machine + 1):
            keys.press("Shift+Enter")
        assert "0 of 6 solved in this lab" in said(machine, "solved in this lab")

        keys.press("Tab")
        keys.press("Enter")
        assert page.locator("details[open]").count() == 1, "the hint of the cell that is selected"
        keys.press("ArrowDown")
        write_and_check(wrong)
        assert "✗" in said(check, "keys") and "Traceback" not in said(check, "keys")
        page.screenshot(path=SCREENSHOTS / "student-mistake.png")

        for _ in range(check - answer + 1):
            keys.press("ArrowUp")
        write_and_check(right)
        assert "✓" in said(check, "1 of 6 solved in this lab")
        page.screenshot(path=SCREENSHOTS / "student-right.png")

        for key in ("0", "0"):
            keys.press(key)
        page.locator(".jp-Dialog", has_text="Restart Kernel?").wait_for()
        keys.press("Enter")
        page.locator(".jp-Dialog").wait_for(state="detached")
        for _ in range(check + 1):
            keys.press("ArrowUp")
        for _ in range(machine + 1):
            keys.press("Shift+Enter")
        assert "1 of 6 solved in this lab" in said(machine, "1 of 6 solved")
        page.screenshot(path=SCREENSHOTS / "student-restarted.png")
