"""The data sheet's numbers are those that the models' configs give."""

import re
import sys

import pytest

from shared import files, models
from shared.hub.catalogue import CONFIGS, SOURCES
from shared.machine import guard
from shared.models.sizes import download_bytes

sys.path.insert(0, str(files.ROOT / "scripts"))
import tables

TEXT = tables.FILE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_data_sheet_holds_what_make_tables_writes():
    assert tables.filled(TEXT) == TEXT, "data/README.md is out of date: run `make tables`"


@pytest.mark.slow
def test_a_number_that_was_changed_by_hand_is_found():
    changed = TEXT.replace("2,768,345,600", "2,800,000,000", 1)
    assert changed != TEXT and tables.filled(changed) == TEXT


def test_every_source_and_every_tiny_model_has_its_row():
    for name in (*SOURCES, *models.TINY):
        assert re.search(rf"^\| `{re.escape(name)}` \|", TEXT, flags=re.MULTILINE), name


@pytest.mark.slow
def test_a_table_that_nobody_makes_is_an_error():
    with pytest.raises(KeyError, match="prices"):
        tables.filled("<!-- table: prices -->\n<!-- end -->")


# ---- what sentences say beside the tables ---------------------------------------------------------------------------


def test_what_the_data_sheet_says_of_a_spark_is_so():
    """The verdicts in bold are typed; the bytes beside them are computed."""
    kept, (least, most) = guard.kept(guard.SPARK), tables.IDLE
    jamba, mixtral = (tables._while_loading(name, 16) + kept for name in ("jamba-v0.1", "mixtral-8x7b"))
    assert jamba > most and 0 < least - mixtral < 2e9  # "does not fit"; "only where next to nothing else runs"
    assert all(tables._while_loading(name, 8) + kept < least for name in ("jamba-v0.1", "mixtral-8x7b"))


def test_the_data_sheet_counts_the_models_of_configs_alone():
    shapes = {name for name, config in CONFIGS.items() if config.source.startswith("a shape")}
    assert shapes == {"mamba2attn-2.7b", "transformerpp-2.7b"} and all(f"`{name}`" in TEXT for name in shapes)


@pytest.mark.parametrize("kind", ["mamba", "transformer"])
def test_the_instruct_models_have_about_the_parameters_that_the_data_sheet_says(kind):
    config = models.cards.read_config(files.DATA / "tiny" / "instruct" / kind / "config.json")
    total = models.sizes.of_config(config).total
    assert "a transformer of about\n65,000 parameters" in TEXT and total == pytest.approx(65_000, rel=0.02)


def test_the_readme_has_the_sizes_of_the_catalogue():
    readme = (files.ROOT / "README.md").read_text(encoding="utf-8")
    labs = {lab for source in SOURCES.values() for lab in source.labs}
    sizes = [sum(download_bytes(name) for name, source in SOURCES.items() if lab in source.labs) for lab in labs]
    assert f"{min(sizes) / 1e9:.2f} to {max(sizes) / 1e9:.1f} GB a lab" in readme
    assert "at most 2 million parameters" in readme and max(models.size(name).total for name in models.TINY) <= 2e6
