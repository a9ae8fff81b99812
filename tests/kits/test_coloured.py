"""Text coloured by expert: readable with colour, without colour, without a kernel, and redrawn by the text field."""

import html
import re

import IPython.display
import pytest
import torch

from shared import models
from shared.errors import BadInput, Missing
from shared.kits import coloured, routing

INDICES = torch.tensor([[3, 1], [0, 3], [2, 0], [-1, -1]])
WEIGHTS = torch.tensor([[0.7, 0.2], [0.5, 0.25], [0.9, 0.1], [0.0, 0.0]])
PIECES = [" a<b", '"q"', "\n", "never"]


def spans(body: str) -> list[tuple[str, str]]:
    """(tooltip, what is read) of every token."""
    found = re.findall(r'<span title="([^"]*)"[^>]*>(.*?)</span>', body)
    return [(html.unescape(title), html.unescape(re.sub("<[^>]*>", "|", shown))) for title, shown in found]


def luminance(colour: str) -> float:
    """Relative luminance by WCAG 2.1."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in _channels(colour)]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _channels(colour: str) -> list[float]:
    return [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]


@pytest.mark.parametrize("experts", [8, 16, 64])
def test_black_text_is_readable_on_every_colour(experts):
    colours = [coloured.colour(e, experts) for e in range(experts)]
    assert len(set(colours)) == experts
    for colour in colours:
        assert (luminance(colour) + 0.05) / 0.05 > 7, colour  # WCAG's stricter level


def test_each_token_says_its_expert_without_colour_and_all_of_them_in_its_tooltip():
    body = coloured.text(PIECES, INDICES, WEIGHTS, 4)
    assert [shown for _, shown in spans(body)] == [" a<b|3|", '"q"|0|', "⏎|2|"]
    assert [title.split(" → ")[1] for title, _ in spans(body)] == [
        "expert 3: 0.70, expert 1: 0.20",
        "expert 0: 0.50, expert 3: 0.25",
        "expert 2: 0.90, expert 0: 0.10",
    ]
    assert body.count("<br>") == 1 and "never" not in body
    assert all(coloured.colour(int(e), 4) in body for e in INDICES[:3, 0])


@pytest.fixture(scope="module")
def tokenizer():
    return models.tiny_tokenizer()


@pytest.mark.parametrize("text", ["é", "日本", "🙂", "naïve 日本語 🙂!", "👩‍👩‍👧", "ű\n京都", "a\ufffd日"])
def test_the_bytes_of_a_character_stand_together(tokenizer, text):
    ids = tokenizer(text).input_ids
    pieces = coloured.pieces(tokenizer, torch.tensor([*ids, -1]))
    assert len(pieces) == len(ids) + 1 and "".join(pieces).replace("\ufffd", "") == text.replace("\ufffd", "")
    chosen, weights = torch.tensor([[1, 0]] * len(ids) + [[-1, -1]]), torch.full((len(pieces), 2), 0.5)
    marks = spans(coloured.text(pieces, chosen, weights, 4))
    assert len(marks) == len(ids)  # every token keeps its expert
    whole = ""
    for piece, (title, shown) in zip(pieces, marks, strict=False):
        whole = piece or whole
        assert shown.endswith("|1|") and title.startswith(repr(whole))
        assert ("continued" in title) == (piece == "")


def test_what_a_cut_leaves_of_a_character_is_still_a_token(tokenizer):
    ids = tokenizer("a🙂").input_ids
    assert len(ids) > 3
    assert coloured.pieces(tokenizer, torch.tensor(ids[:-1]))[0] == "a"
    assert coloured.pieces(tokenizer, torch.tensor(ids[2:] + tokenizer("日").input_ids))[-3:].count("日") == 1
    assert coloured.pieces(tokenizer, torch.tensor([-1, *ids, -1]))[1:-1] == coloured.pieces(
        tokenizer, torch.tensor(ids)
    )


def test_a_document_says_what_was_left_out_of_it_and_nothing_where_all_is_there(tokenizer):
    model, _ = models.load("tiny/olmoe", dtype=torch.float32, device="cpu")
    texts = ["once upon a time. " * 800, "A short one."]
    routed = routing.route(model, tokenizer, texts)
    long, short = (coloured.document(tokenizer, routed, 3, 16, number) for number in (0, 1))
    count = len(tokenizer(texts[0])["input_ids"])
    assert len(spans(long)) == routing.LONGEST
    assert f"the first {routing.LONGEST} tokens" in long
    assert f"did not read the {count - routing.LONGEST:,} after" in long
    assert "did not read" not in short and "".join(shown.split("|")[0] for _, shown in spans(short)) == texts[1]


def test_text_cannot_become_markup():
    body = coloured.text(["<img src=x>", "</span>"], INDICES[:2], WEIGHTS[:2], 4)
    assert "<img" not in body and len(spans(body)) == 2
    assert "src=" not in re.sub(r"&lt;.*?&gt;", "", body)


def test_the_legend_has_every_number_on_its_colour():
    body = coloured.legend(16)
    assert re.findall(r"background-color:(#\w+)\">(\d+)<", body) == [
        (coloured.colour(e, 16), str(e)) for e in range(16)
    ]


@pytest.fixture
def displayed(monkeypatch) -> list[dict]:
    found = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: found.append(data))
    return found


def drawing(text: str, layer: int) -> str:
    if not text:
        raise BadInput("There is nothing to route in an empty text.")
    return f"<b>{html.escape(text)} in layer {layer}</b>"


def test_typing_and_choosing_a_layer_draw_again(displayed):
    field, choice, shown = coloured.box(drawing, "start", layers=[1, 3]).children
    assert field.layout.width == "auto"  # with "100%" its margin would be cut off at the right
    assert shown.value == "<b>start in layer 3</b>"
    field.value = "a < b"
    assert shown.value == "<b>a &lt; b in layer 3</b>"
    choice.value = 1
    assert shown.value == "<b>a &lt; b in layer 1</b>"


def test_an_empty_text_is_a_sentence_and_the_field_goes_on(displayed):
    field, _, shown = coloured.box(drawing, "start", layers=[0]).children
    field.value = ""
    assert shown.value == "There is nothing to route in an empty text."
    field.value = "again"
    assert "again" in shown.value


def test_a_model_that_was_given_back_is_a_sentence_too(displayed):
    """After Run All Cells a student scrolls up and types: the lab's last cell has freed the model."""
    gone = []

    def route(text: str, layer: int) -> str:
        if gone:
            raise Missing("This model was given back.")
        return drawing(text, layer)

    field, _, shown = coloured.box(route, "start", layers=[0]).children
    gone.append(True)
    field.value = "more"
    assert shown.value == "This model was given back."


def test_without_a_kernel_the_drawing_of_the_start_is_there(displayed):
    box = coloured.box(drawing, "start <here>", layers=[0, 2])
    (data,) = displayed
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == box.model_id
    assert "<b>start &lt;here&gt; in layer 2</b>" in data["text/html"] and "Without a kernel" in data["text/html"]
    assert data["text/plain"].endswith("start <here>")


def test_show_gives_html_and_a_plain_sentence(displayed):
    coloured.show("<p>x</p>", "What it shows.")
    assert displayed == [{"text/html": "<p>x</p>", "text/plain": "What it shows."}]
