"""Text coloured by the experts that its tokens went to, as HTML: in JupyterLab, and in a page without a kernel.

Every colour comes with a number, so nothing is lost without colour: the one behind a token is its first expert.
"""

import colorsys
import html
from collections.abc import Callable, Sequence

from torch import Tensor

from shared.errors import CourseError
from shared.kits.routing import Routed

TOKEN = "color:#000;background-color:{};padding:1px 0 1px 1px;border-radius:3px;white-space:pre-wrap"
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character
MOST = 8  # tokens that a character and what hangs together with it take: it has four bytes at most
SMALL = "font-size:65%;color:#000;padding:0 1px"


def colour(expert: int, experts: int) -> str:
    """A light colour for one of E experts, as #rrggbb: black text on it is readable, neighbours differ in lightness."""
    lightness = (0.87, 0.77, 0.82)[expert % 3]
    return "#" + "".join(f"{round(255 * c):02x}" for c in colorsys.hls_to_rgb(expert / experts, lightness, 0.75))


def text(pieces: Sequence[str], indices: Tensor, weights: Tensor, experts: int) -> str:
    """Tokens as HTML: the colour and the small number say the first expert, the tooltip all k with their weights.

    pieces: T strings; an empty one belongs to the character before it. indices, weights: (T, k), the largest weight
    first; tokens with index -1 (padding) are left out.
    """
    marks, whole = [], ""
    for piece, chosen, shares in zip(pieces, indices.tolist(), weights.tolist(), strict=True):
        if chosen[0] < 0:
            continue
        which = ", ".join(f"expert {e}: {w:.2f}" for e, w in zip(chosen, shares, strict=True) if e >= 0)
        shown = html.escape(piece).replace("\n", "⏎")
        whole = piece or whole
        title = html.escape(f"{whole!r} → {which}" if piece else f"{whole!r}, continued → {which}")
        style = TOKEN.format(colour(chosen[0], experts))
        mark = f'<span title="{title}" style="{style}">{shown}<sub style="{SMALL}">{chosen[0]}</sub></span>'
        marks.append(mark + "<br>" * piece.count("\n"))
    return f'<div style="line-height:1.9">{"".join(marks)}</div>'


def legend(experts: int) -> str:
    """Every expert's number on its colour."""
    style = "color:#000;padding:1px 5px;border-radius:3px;display:inline-block;margin:1px;background-color:"
    chips = "".join(f'<span style="{style}{colour(e, experts)}">{e}</span>' for e in range(experts))
    return f'<div style="line-height:1.6">first expert: {chips}</div>'


def pieces(tokenizer, tokens: Tensor) -> list[str]:
    """(T,) token ids -> the text of each; padding (-1) is empty.

    A character that is several tokens, each some of its bytes, stands at the first; the others are empty.
    """
    ids, found, first = tokens.tolist(), [""] * len(tokens), 0
    while first < len(ids):
        count = 1
        if ids[first] >= 0:
            count, found[first] = _readable(tokenizer, ids[first : first + MOST])
        first += count
    return found


def _readable(tokenizer, ids: list[int]) -> tuple[int, str]:
    """How many tokens from the first on make whole characters, and these; the first alone where no number does."""
    for count in range(1, len(ids) + 1):
        if ids[count - 1] < 0:
            break
        text = tokenizer.decode(ids[:count])
        if REPLACEMENT not in text:
            return count, text
    return 1, tokenizer.decode(ids[:1])


def document(tokenizer, routed: Routed, layer: int, experts: int, number: int = 0) -> str:
    """One of the routed documents as HTML, coloured by its experts in one layer; says so where its end is left out."""
    read = pieces(tokenizer, routed.tokens[number])
    drawn = text(read, routed.indices[layer][number], routed.weights[layer][number], experts)
    if left_out := int(routed.left_out[number]):
        shown = int((routed.tokens[number] >= 0).sum())
        note = f"These are the first {shown:,} tokens; the model did not read the {left_out:,} after them."
        drawn += f"<p><em>{note}</em></p>"
    return drawn


def show(body: str, alt: str) -> None:
    """Display HTML; `alt` says in plain text what a reader without it should know."""
    from IPython.display import display

    display({"text/html": body, "text/plain": alt}, raw=True)


def box(route: Callable[[str, int], str], start: str, layers: Sequence[int]):
    """A text field and a choice of layer above what `route(text, layer)` draws; displayed, and returned.

    Without a kernel the page shows what it drew for `start`. Returns: the widget; its `children` are the field, the
    choice and the drawing, and setting the `value` of one of the first two draws again, as typing does.
    """
    import ipywidgets
    from IPython.display import display

    # In a column a child is as wide as the column; "100%" would be that and its margin, which is then cut off.
    field = ipywidgets.Textarea(start, layout={"width": "auto"}, continuous_update=False, description="text")
    choice = ipywidgets.Dropdown(options=list(layers), value=layers[-1], description="layer")
    drawing = ipywidgets.HTML(route(start, layers[-1]))

    def draw(_):
        try:
            drawing.value = route(field.value, choice.value)
        except (ValueError, CourseError) as problem:  # nothing to route, or no model any more: say so where one looks
            drawing.value = html.escape(str(problem))

    field.observe(draw, "value")
    choice.observe(draw, "value")
    whole = ipywidgets.VBox([field, choice, drawing])
    note = "<p><em>Without a kernel this is a picture: open the lab to type your own text.</em></p>"
    static = f"<blockquote>{html.escape(start)}</blockquote>{drawing.value}{note}"
    view = {"model_id": whole.model_id, "version_major": 2, "version_minor": 0}
    data = {"application/vnd.jupyter.widget-view+json": view, "text/html": static}
    display({**data, "text/plain": f"A text field, a choice of layer, and the routing of: {start}"}, raw=True)
    return whole
