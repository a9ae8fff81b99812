"""The pages that `make solutions` and `make site` render: whole, sufficient to themselves, and readable by everyone.

Two sites are judged: one of a few cells of lab 2.4.1, quickly made in each style; and one of all labs as `make run`
left them. Chromium is Debian's, as in test_browser.py.
"""

import functools
import html
import itertools
import re
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
from conftest import CHROMIUM, CHROMIUM_FLAGS

from shared import files, notebooks, plots
from shared.errors import BadInput, CourseError
from shared.notebooks import __main__ as command
from shared.notebooks import pages, record

pytestmark = pytest.mark.slow

LARGEST = 3e6  # bytes of a page with its images
THEMES, DESK, PHONE, PAPER = ("light", "dark"), 1300, 400, 718  # pixels; the last: A4 between margins of 10 mm


@pytest.fixture(scope="session")
def few_cells(tmp_path_factory) -> notebooks.Run:
    """Lab 2.4.1, solved and executed, up to its first check: prose, a table, figures, a hint, an exercise."""
    lab = notebooks.solve("2.4.1")
    position = next(i for i, cell in enumerate(lab.cells) if cell.id == "check-kv-cache-bytes")
    lab.cells = lab.cells[: position + 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notebooks.run, "solve", lambda name: lab)
        run = notebooks.execute("2.4.1", folder=tmp_path_factory.mktemp("executed"))
    assert run.good and run.checks == 1, run
    return run


@pytest.fixture(scope="session")
def small(few_cells, tmp_path_factory) -> dict[str, Path]:
    """style -> a site of these few cells."""
    folder = tmp_path_factory.mktemp("small") / pages.COLLAPSED
    return {pages.COLLAPSED: pages.build([few_cells], pages.COLLAPSED, folder).parent}


@pytest.fixture(scope="session")
def whole(made, no_network) -> dict[str, Path]:
    """style -> a site of all labs, as an instructor makes it after `make run`, without a network."""
    for name in ("solutions", "site"):
        make = ["make", "--no-print-directory", name]
        done = subprocess.run(make, cwd=files.ROOT, env=no_network, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("executed before") == len(notebooks.labs()), done.stdout
    return {pages.OPEN: files.BUILD / "html", pages.UNSOLVED: files.BUILD / "site"}


STYLES = pytest.mark.parametrize("style", pages.STYLES)


@pytest.fixture
def folder(style, request) -> Path:
    return request.getfixturevalue("small" if style == pages.COLLAPSED else "whole")[style]


# ---- what is in the files -------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The ids, links and images of a page, and the headings of its article."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids, self.links, self.images, self.headings, self.inside = set(), [], [], [], False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.inside |= tag == "article"
        self.ids |= {found["id"]} if "id" in found else set()
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.images += [found] if tag == "img" else []
        self.headings += [int(tag[1])] if self.inside and re.fullmatch("h[1-6]", tag) else []

    def handle_endtag(self, tag):
        self.inside &= tag != "article"


@functools.cache
def read(path: Path) -> Page:
    """A page of a site, which is made once for all tests."""
    return Page(path)


def pages_of(folder: Path) -> dict[Path, Page]:
    return {path: read(path) for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts}


@STYLES
def test_every_link_leads_somewhere_and_no_file_comes_from_another_host(folder):
    found = pages_of(folder)
    for path, page in found.items():
        for link in page.links:
            address, fragment = urldefrag(link)
            assert not re.match(r"https?:|//", address), f"{path.name}: {link}"
            if address.startswith(("data:", "mailto:")):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve() if address else path
            assert target.exists(), f"{path.name}: {link}"
            if fragment and target in found:
                assert unquote(fragment) in found[target].ids, f"{path.name}: {link}"


@STYLES
def test_headings_come_in_order_and_every_image_has_words(folder):
    for path, page in pages_of(folder).items():
        levels = page.headings if path.name != "search.html" else [1]  # the theme's own, without an article
        assert levels[:1] == [1] and levels.count(1) == 1, path.name
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels)), path.name
        assert all(len(image.get("alt", "")) > 40 for image in page.images), path.name


@STYLES
def test_a_page_with_its_images_is_small(folder):
    for path, page in pages_of(folder).items():
        images = [path.parent / unquote(image["src"]) for image in page.images]
        assert path.stat().st_size + sum(image.stat().st_size for image in images) < LARGEST, path.name


@STYLES
def test_a_page_says_where_it_comes_from(folder):
    for path in pages_of(folder):
        text = words(path)
        assert re.search(r"Commit (\w{10}|unknown)", text), path.name
        assert re.search(r"executed in .* on .* cores?.*, Python 3\.\d+\.\d+, torch 2\.", text), path.name
        if path.name.startswith("lab-"):
            assert re.search(r"Executed at scale tiny on \d{4}-\d\d-\d\d in \d+ seconds", text)
            assert re.search(r"at most \d\.\d\d GB", text) and re.search(r"transformers \d+\.", text)


@functools.cache
def words(path: Path) -> str:
    """The text of a page, as its reader sees it."""
    return html.unescape(re.sub("<[^>]+>", "", path.read_text(encoding="utf-8")))


def lab_page(folder: Path, lab: str) -> Path:
    return folder / "labs" / f"{notebooks.path_of(lab).stem}.html"


@pytest.mark.parametrize("lab", list(notebooks.labs()))
def test_a_page_shows_every_figure_of_its_lab_with_its_own_words(whole, lab):
    executed = nbformat.read(files.BUILD / "executed" / notebooks.path_of(lab).name, as_version=4)
    outputs = [output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])]
    told = [data["text/plain"] for data in outputs if plots.DRAWN in data]
    assert len(told) >= 3
    for folder in whole.values():
        assert [image["alt"] for image in read(lab_page(folder, lab)).images] == told
        assert 'href="labs/' + lab_page(folder, lab).name in (folder / "index.html").read_text(encoding="utf-8")
        assert "![" not in words(lab_page(folder, lab)) and "$$" not in words(lab_page(folder, lab))


@pytest.mark.parametrize("lab", list(notebooks.labs()))
def test_answers_stand_in_the_solutions_and_nowhere_in_the_course(whole, lab):
    given = "\n".join(cell.source for each in notebooks.labs() for cell in notebooks.read(each).cells)
    lines = {line.strip() for answer in notebooks.answers(lab).values() for line in answer.splitlines()}
    own = {line for line in lines if len(line) > 20 and line not in given}
    assert len(own) > 10
    assert {line for line in own if line in words(lab_page(whole[pages.OPEN], lab))} == own
    kept = [path for path in whole[pages.UNSOLVED].rglob("*") if path.suffix in (".html", ".js", ".txt", ".ipynb")]
    text = "\n".join([words(path) for path in kept])
    assert {line for line in own if line in text} == set()


def test_a_widget_is_a_picture_on_a_page(whole):
    for folder in whole.values():
        source = lab_page(folder, "2.4.3").read_text(encoding="utf-8")
        assert "Without a kernel this is a picture" in source and "widget-view+json" not in source


def test_the_front_page_has_six_figures_and_what_each_lab_took(whole):
    for folder in whole.values():
        front, text = read(folder / "index.html"), words(folder / "index.html")
        assert len(front.images) == len(notebooks.labs())
        assert all(image["alt"] in text for image in front.images)  # a sentence each, for everyone
        for lab in notebooks.labs():
            assert re.search(rf"{lab}\s+{len(notebooks.answers(lab))} in \d+ minutes\s+\d+ minutes\s+\d+ s", text), lab


def test_the_picture_of_the_readme_is_what_lab_2_4_1_draws(whole):
    """Where the lab draws another: copy build/pages/html/figures/2.4.1.png to docs/picture.png."""
    from matplotlib.image import imread

    drawn = imread(files.BUILD / "pages" / "html" / "figures" / "2.4.1.png")
    kept = imread(files.ROOT / "docs" / "picture.png")
    assert drawn.shape == kept.shape and abs(drawn - kept).mean() < 0.01


@STYLES
def test_a_style_says_what_stands_in_the_place_of_an_exercise(folder, style):
    shown = words(lab_page(folder, "2.4.1"))
    stub = "raise NotImplementedError" in shown.split("Exercise 1 of 6")[1]
    answer = notebooks.answers("2.4.1")["ex-kv-cache-bytes"].splitlines()[-1].strip()
    assert stub == (style != pages.OPEN) and (answer in shown) == (style != pages.UNSOLVED)
    assert ("An answer" in shown) == (style == pages.COLLAPSED)
    assert ("not attempted yet" in shown) == (style == pages.UNSOLVED)
    assert "Hint" in shown and "The code of this figure" in shown


# ---- what is executed, and what is not ------------------------------------------------------------------------------


def test_a_run_is_known_by_its_sources(few_cells):
    assert record.of(few_cells.notebook) == few_cells
    notebook, tiny = notebooks.solve("2.4.1"), {"SCALE": "tiny"}
    known = record.sources(notebook, tiny)
    assert record.sources(notebooks.solve("2.4.1"), tiny) == known != record.sources(notebook, {"SCALE": "full"})
    notebook.cells[-1].source += " "
    assert record.sources(notebook, tiny) != known != few_cells.sources


@pytest.mark.parametrize("text", [None, "", "{", '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'])
def test_a_notebook_that_says_nothing_of_a_run_counts_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / "lab.ipynb").write_text(text)
    assert record.of(tmp_path / "lab.ipynb") is None


def test_one_lab_alone_leaves_the_pages_of_the_others(made, monkeypatch):
    """And a lab whose sources have changed, or whose checks failed, is executed again."""
    again = []
    monkeypatch.setattr(command, "run", lambda lab, scale: again.append(lab) or [record.of(command.kept_at(lab))])
    labs = list(notebooks.labs())
    assert [run.lab for run in command.runs_for_pages("2.4.3", "tiny")] == labs and again == []
    monkeypatch.setattr(record, "versions", lambda: {"torch": "another"})
    assert [run.lab for run in command.runs_for_pages("2.4.3", "tiny")] == labs and again == ["2.4.3"]


def test_an_unknown_style_and_a_missing_sphinx_are_one_sentence_before_anything_runs(monkeypatch, capsys):
    with pytest.raises(BadInput, match=r"^STYLE=folded is unknown; it is open or collapsed\.$"):
        pages.check("folded")
    monkeypatch.setattr(pages, "find_spec", lambda name: None)
    assert command.main(["site"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "make site" in said.err and said.err.count("\n") == 1


def test_a_broken_link_is_one_sentence_that_names_it(tmp_path):
    (tmp_path / "index.md").write_text("# A page\n\n[Another](nowhere.md)")
    with pytest.raises(CourseError, match=r"nowhere\.md") as caught:
        pages.sphinx(tmp_path, tmp_path / "pages", "")
    assert "\n" not in str(caught.value)


def test_two_programs_do_not_write_the_same_pages(tmp_path):
    with files.lock(tmp_path / ".site.lock"), pytest.raises(CourseError, match="wait until it ends"):
        pages.build([], pages.OPEN, tmp_path / "site")


# ---- in a browser ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(chromium) -> Iterator[Callable]:
    """Opens a page of a site as a reader opens it from disk; its requests to hosts are in `page.asked`.

    One tab for each theme and width: in a new one Chromium would compile the scripts of the pages and of axe again,
    which takes longer than the judging.
    """
    from playwright.sync_api import sync_playwright

    tabs = {}
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_FLAGS)

        def opened(path: Path, theme: str, width: int):
            if (theme, width) not in tabs:
                new = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=theme)
                new.on("request", lambda request: new.asked.append(request.url))
                tabs[theme, width] = new
            page = tabs[theme, width]
            page.asked = []
            page.emulate_media(media="screen")
            page.goto(path.as_uri())
            page.wait_for_load_state("load")
            return page

        yield opened
        browser.close()


def judged(page, without: str = "") -> list[str]:
    """What axe-core finds serious or critical; without: a selector of what is left out."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page, context={"exclude": [without]} if without else None).response["violations"]
    grave = [violation for violation in found if violation["impact"] in ("serious", "critical")]
    return [f"{violation['id']}: {node['html'][:200]}" for violation in grave for node in violation["nodes"]]


WIDER = """() => {
    const wide = element => element.getBoundingClientRect().right > innerWidth + 1;
    const scrolls = element => element && (/auto|scroll/.test(getComputedStyle(element).overflowX)
                                           || scrolls(element.parentElement.closest('article *')));
    const parts = [...document.querySelectorAll('article :is(p, li, code, pre, table, img, math, h1, h2, h3)')];
    return [document.documentElement.scrollWidth - innerWidth,
            parts.filter(part => wide(part) && !scrolls(part)).map(part => part.outerHTML.slice(0, 200))];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("theme", THEMES)
def test_everyone_can_read_it_in_both_themes_at_a_desk_and_on_a_phone(small, opened, theme, width):
    every_page = (theme, width) in (("light", DESK), ("dark", PHONE))
    for path in pages_of(small[pages.COLLAPSED]):
        if not every_page and "labs" not in path.parts and path.name != "index.html":
            continue  # text alone is judged in each theme and at each width, and not in each pair of them
        page = opened(path, theme, width)
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        assert judged(page) == [], path.name
        assert page.evaluate(WIDER) == [0, []], path.name
        assert all(address.startswith(("file:", "data:")) for address in page.asked), page.asked


@pytest.mark.browser
@pytest.mark.parametrize("lab", list(notebooks.labs()))
@pytest.mark.parametrize(("theme", "width"), [("light", DESK), ("dark", PHONE)])
def test_everyone_can_read_each_lab(whole, opened, lab, theme, width):
    """Code is judged in the pages above: here it would take axe a minute a page."""
    page = opened(lab_page(whole[pages.OPEN], lab), theme, width)
    assert judged(page, without=".cell_input") == []
    assert page.evaluate(WIDER) == [0, []]
    assert all(address.startswith(("file:", "data:")) for address in page.asked), page.asked


CUT = """() => {
    const parts = [...document.querySelectorAll('article :is(pre, table, img, math)')].filter(part => part.clientWidth);
    const cut = part => part.scrollWidth > part.clientWidth + 1 || part.getBoundingClientRect().right > innerWidth;
    return [document.querySelectorAll('details:not([open])').length,
            parts.filter(cut).map(part => part.outerHTML.slice(0, 200))];
}"""


@pytest.mark.browser
@pytest.mark.parametrize("lab", list(notebooks.labs()))
def test_paper_has_every_line_whole_and_every_fold_open(whole, opened, lab):
    page = opened(lab_page(whole[pages.UNSOLVED], lab), "light", PAPER)
    folds = page.locator("details:not([open])").count()
    assert folds > len(notebooks.answers(lab))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(CUT) == [0, []]
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details:not([open])").count() == folds


@pytest.mark.browser
def test_a_reader_finds_the_way_by_keyboard_by_search_and_from_page_to_page(small, opened):
    folder = small[pages.COLLAPSED]
    page = opened(folder / "index.html", "light", DESK)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main-content")
    page.locator("a.right-next").click()
    assert "Lab 2.4.1" in page.title()
    page.locator("a.left-prev").click()
    assert "What efficient language models cost" in page.title()

    page.goto(f"{(folder / 'search.html').as_uri()}?q=perplexity")
    page.locator("ul.search li a").first.wait_for()
    assert "Commands" in page.locator("ul.search").inner_text()
    assert all(address.startswith(("file:", "data:")) for address in page.asked), page.asked
