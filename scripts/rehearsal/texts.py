"""Stand-ins of the published data sets: parquet files with the published names and columns, the course's own text.

WikiText has its empty rows and its headings, books are several hundred kilobytes long, Alpaca has examples without
input and with code in them.
"""

import io
import itertools
import random

from shared import data
from shared.hub.catalogue import DATASETS

BOOK = 300_000  # characters
BOOKS = 100  # in the test split, as published
ARTICLES = {"test": 30, "validation": 700, "train": 900}
INSTRUCTIONS = 1200


def parquet(**columns: list) -> bytes:
    """The bytes of a parquet file with these columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def documents(seed: int) -> list[str]:
    """The course's training documents, of all kinds, in an order of the seed."""
    found = [text for part in data.tiny_text("train").values() for text in part.split("\n\n")]
    random.Random(seed).shuffle(found)
    return found


def wikitext() -> dict[str, bytes]:
    """Both versions of WikiText: an article is a heading, empty rows, and a paragraph a row."""
    files = {}
    for name in ("wikitext-2", "wikitext-103"):
        for split, parts in DATASETS[name].splits.items():
            rows = []
            for number, text in enumerate(itertools.islice(documents(len(split)), ARTICLES[split])):
                rows += ["", f" = Article {number} = \n", ""]
                rows += [f" {line} \n" for line in text.splitlines()]
            for file in parts:
                files[file] = parquet(text=rows)
    return files


def book(number: int) -> str:
    """One long text: documents of the course, one after the other."""
    whole = f"Book {number}\n\n" + "\n\n".join(documents(number))
    return whole[:BOOK]


def pg19() -> dict[str, bytes]:
    (file,) = DATASETS["pg19"].patterns
    books = [book(number) for number in range(10)]
    columns = {
        "short_book_title": [f"Title {n}" for n in range(BOOKS)],
        "publication_date": [1850 + n % 70 for n in range(BOOKS)],
        "url": [f"http://example.invalid/{n}" for n in range(BOOKS)],
        # The first ten are what labs read.
        "text": [books[n] if n < 10 else f"Book {n}\n" for n in range(BOOKS)],
    }
    return {file: parquet(**columns)}


def alpaca() -> dict[str, bytes]:
    """Instructions with and without input; some outputs are code, with indented lines."""
    (file,) = DATASETS["alpaca"].patterns
    rows = []
    for number, text in enumerate(itertools.islice(documents(0), INSTRUCTIONS)):
        first, _, rest = text.partition(" ")
        row = {
            "instruction": f"Go on with what begins with {first!r} ({number}).",
            "input": "" if number % 5 < 3 else text[:60],
            "output": "def double(x):\n    return 2 * x" if number % 7 == 0 else rest[:80],
        }
        rows.append(row | {"text": data.format_instruction(row)})
    return {file: parquet(**{key: [row[key] for row in rows] for key in rows[0]})}


def repositories() -> dict[tuple[str, str], tuple[str, dict[str, bytes]]]:
    """("dataset", repository) -> (pinned revision, {path: content})."""
    made = {"wikitext-2": wikitext(), "pg19": pg19(), "alpaca": alpaca()}
    return {
        ("dataset", DATASETS[name].repo): (DATASETS[name].revision, {"README.md": b"# Stand-in\n"} | files)
        for name, files in made.items()
    }
