"""The data sheet's numbers are those that the models' configs give."""

import re
import sys

import pytest

from shared import files, models
from shared.hub.catalogue import SOURCES

sys.path.insert(0, str(files.ROOT / "scripts"))
import tables

TEXT = tables.FILE.read_text(encoding="utf-8")


def test_the_data_sheet_holds_what_make_tables_writes():
    assert tables.filled(TEXT) == TEXT, "data/README.md is out of date: run `make tables`"


def test_a_number_that_was_changed_by_hand_is_found():
    changed = TEXT.replace("2,768,345,600", "2,800,000,000", 1)
    assert changed != TEXT and tables.filled(changed) == TEXT


def test_every_source_and_every_tiny_model_has_its_row():
    for name in (*SOURCES, *models.TINY):
        assert re.search(rf"^\| `{re.escape(name)}` \|", TEXT, flags=re.MULTILINE), name


def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError, match="prices"):
        tables.filled("<!-- table: prices -->\n<!-- end -->")
