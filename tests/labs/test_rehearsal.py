"""Scale full, executed from end to end with small stand-ins of every published source: `make rehearse` in a test.

Each lab fetches what the catalogue lists for it from a hub on this machine, and then runs without a network. What the
stand-ins keep of the published models is tested here too: a rehearsal with other models would prove nothing.
"""

import ast
import json
from functools import partial
from unittest.mock import patch

import nbformat
import pytest
import rehearse
from rehearsal import models as standins
from rehearsal import texts, tokenizers, warm

from shared import notebooks, plots
from shared.files import DATA
from shared.hub.catalogue import DATASETS, MODELS, SOURCES

pytestmark = pytest.mark.slow

RUNS = {run.name: run for run in rehearse.rehearsals()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rehearsal")
    standins.write_configs(folder / "configs")
    return folder


@pytest.fixture(scope="module")
def endpoint(folder):
    with rehearse.hub(folder / "made") as address:
        yield address


@pytest.fixture(scope="module")
def worker(folder):
    with rehearse.kernels(folder) as worker:
        yield worker


@pytest.fixture(scope="module")
def made(folder) -> dict:
    """Every repository: (kind, repository) -> (revision, {path: content})."""
    return rehearse.repositories(folder / "looked-at")


# ---- the labs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_solved_lab_ends_at_scale_full(name, folder, endpoint, worker):
    done, wrong = rehearse.rehearse(RUNS[name], folder, endpoint, worker)
    assert wrong == []
    assert done.passed == done.checks == len(notebooks.answers(RUNS[name].lab))


def test_every_lab_is_rehearsed_with_trained_and_with_random_weights_and_the_mixtures_with_another_model():
    labs = set(notebooks.labs())
    assert {run.lab for run in RUNS.values() if not run.parameters} == labs
    assert {run.lab for run in RUNS.values() if ("WEIGHTS", "random") in run.parameters} == labs
    assert {run.lab for run in RUNS.values() if ("MODEL", "deepseek-moe-16b") in run.parameters} == {"2.4.3", "2.4.4"}


@pytest.mark.parametrize("lab", rehearse.NUMBERS)
def test_a_rehearsal_changes_numbers_of_the_settings_and_only_makes_them_smaller(lab):
    settings = settings_of(lab, {})
    changed = settings_of(lab, rehearse.NUMBERS[lab])
    assert settings.keys() == changed.keys()
    for key in settings:
        if key in rehearse.NUMBERS[lab]:
            before, after = flat(settings[key]), flat(changed[key])
            assert max(after) <= max(before) and sum(after) < sum(before), key
            assert len(after) <= len(before), key
        else:
            assert settings[key] == changed[key], key


def settings_of(lab: str, numbers: dict) -> dict:
    """The settings of scale full as the lab's own cells make them."""
    notebook = notebooks.read(lab)
    if numbers:
        notebooks.change_settings(notebook, "full", numbers)
    scope = {}
    for cell_id in ("parameters", "imports", "settings"):
        for cell in notebook.cells:
            if cell.id == cell_id:
                exec(cell.source.replace('SCALE = "tiny"', 'SCALE = "full"'), scope)
    return scope["SETTINGS"]["full"]


def flat(value) -> list[float]:
    """The numbers in a setting."""
    if isinstance(value, dict):
        value = list(value.values())
    return [float(number) for number in (value if isinstance(value, (list, tuple)) else [value])]


# ---- a rehearsal can fail -----------------------------------------------------------------------------------------


def broken(cell_id: str, old: str, new: str, lab: str, *given) -> notebooks.Run:
    """`warm.execute` of a lab in which a cell says something else, up to that cell: what comes after it costs time."""
    notebook = notebooks.solve(lab)
    position, cell = next((i, cell) for i, cell in enumerate(notebook.cells) if cell.id == cell_id)
    assert old in cell.source
    cell.source = cell.source.replace(old, new)
    del notebook.cells[position + 1 :]
    with patch.object(notebooks.run, "solve", lambda name: notebook):
        return warm.execute(lab, *given)


def test_a_source_that_a_lab_reads_and_the_catalogue_does_not_list_fails(folder, endpoint, worker):
    reads = "from shared import data\ndata.alpaca(10)\n"
    change = partial(broken, "load", "mamba, tokenizer =", f"{reads}mamba, tokenizer =")
    done, wrong = rehearse.rehearse(RUNS["2.4.2"], folder, endpoint, worker, change)
    assert "alpaca is not complete" in done.error
    assert any("alpaca is not complete" in fault for fault in wrong)


def test_a_context_beyond_a_model_s_positions_fails(folder, endpoint, worker):
    change = partial(broken, "stride-sweep", "strides[0], stride)", "4096, stride)")
    done, wrong = rehearse.rehearse(RUNS["2.4.5"], folder, endpoint, worker, change)
    assert "2,048 positions" in done.error and wrong


def notebook_of(*outputs, tags=()) -> nbformat.NotebookNode:
    cell = nbformat.v4.new_code_cell("x", outputs=list(outputs), metadata={"tags": list(tags)})
    cell.id = "cell"
    return nbformat.v4.new_notebook(cells=[cell])


def figure(*axes) -> nbformat.NotebookNode:
    return nbformat.v4.new_output("display_data", {"image/png": "...", plots.DRAWN: list(axes)})


LINE = {"kind": "Line2D", "label": "mamba", "points": 3, "finite": 3, "repeated": 0, "reaches": [0, 0, 1, 1]}


def test_a_figure_without_data_a_page_on_stderr_and_a_red_check_are_faults():
    stream = nbformat.v4.new_output
    bar = "\rLoading weights:  40%|####      | 2/5 [00:00<00:01,  3.1it/s]\x1b[A\n"
    assert rehearse.faults(notebook_of(figure([LINE]), stream("stream", name="stderr", text=bar))) == []
    assert rehearse.faults(notebook_of(figure([LINE], [LINE | {"finite": 0}])))
    assert rehearse.faults(notebook_of(figure([])))
    assert rehearse.faults(notebook_of(nbformat.v4.new_output("display_data", {"image/png": "..."})))
    assert rehearse.faults(notebook_of(stream("stream", name="stderr", text=bar + "A page about tokenizers.\n")))
    assert rehearse.faults(notebook_of(stream("stream", name="stdout", text="✗ expected 1"), tags=["check"]))
    assert rehearse.faults(notebook_of(stream("error", ename="E", evalue="v", traceback=[])))


# ---- the stand-ins ------------------------------------------------------------------------------------------------


def test_every_source_of_the_catalogue_is_served_at_its_pinned_revision(made):
    for source in SOURCES.values():
        revision, files = made[source.kind, source.repo]
        assert revision == source.revision
        if source.kind == "dataset":
            assert set(source.patterns) <= set(files)


@pytest.mark.parametrize("name", MODELS)
def test_a_stand_in_keeps_what_is_published_but_its_width_and_depth(name, made):
    _, files = made["model", MODELS[name].repo]
    ours, published = (
        json.loads(text) for text in (files["config.json"], (DATA / "models" / f"{name}.json").read_text())
    )
    changed = {key for key in published if ours.get(key) != published[key]}
    assert ours.keys() == published.keys() and changed <= set(standins.NARROW[ours["model_type"]])
    kept = {"vocab_size", "model_type", "num_experts", "n_routed_experts", "num_local_experts", "num_experts_per_tok"}
    kept |= {"max_position_embeddings", "tie_word_embeddings", "torch_dtype", "auto_map", "state_size"}
    assert not changed & kept
    index = "model.safetensors.index.json" in files
    assert index == (name in standins.SHARDED)


def test_deepseek_is_stored_expert_by_expert_as_published_and_mamba_in_float32(made):
    from safetensors.torch import load

    _, files = made["model", MODELS["deepseek-moe-16b"].repo]
    names = json.loads(files["model.safetensors.index.json"])["weight_map"]
    assert "model.layers.1.mlp.experts.63.gate_proj.weight" in names
    assert "model.layers.0.mlp.gate_proj.weight" in names  # the first layer is dense
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in names
    _, files = made["model", MODELS["mamba-130m"].repo]
    weights = load(files["model.safetensors"])
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
    assert "lm_head.weight" not in weights  # tied to the input table


SPECIAL = {  # name of a token -> the token and its id, as published; None: there is none
    "mamba-2.8b": {"bos": ("<|endoftext|>", 0), "eos": ("<|endoftext|>", 0), "unk": ("<|endoftext|>", 0)},
    "pythia-2.8b": {"bos": ("<|endoftext|>", 0), "eos": ("<|endoftext|>", 0), "pad": None},
    "olmoe-1b-7b": {"eos": ("<|endoftext|>", 50279), "pad": ("<|padding|>", 1), "bos": None},
    "deepseek-moe-16b": {"bos": ("<｜begin▁of▁sentence｜>", 100000), "eos": ("<｜end▁of▁sentence｜>", 100001)},
    "mixtral-8x7b": {"bos": ("<s>", 1), "eos": ("</s>", 2), "unk": ("<unk>", 0), "pad": None},
    "jamba-v0.1": {"bos": ("<|startoftext|>", 1), "eos": ("<|endoftext|>", 2), "pad": ("<|pad|>", 0)},
}
LINES = "def f(x):\n    return {'a': [1, 22, 333]}  # two  spaces\n\tÉtude: naïve café, 日本."


@pytest.mark.parametrize("name", SPECIAL)
def test_a_tokenizer_has_the_published_special_tokens_and_gives_a_text_back(name, tmp_path, capfd):
    from shared.models import tokenizer_of

    config = standins.config(name)
    tokenizers.write(config["model_type"], tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    tokenizer = tokenizer_of(tmp_path, config["model_type"])
    for kind, token in SPECIAL[name].items():
        found = getattr(tokenizer, f"{kind}_token"), getattr(tokenizer, f"{kind}_token_id")
        assert found == (token or (None, None)), kind
    assert config["vocab_size"] * 0.9 < len(tokenizer) <= config["vocab_size"]
    ids = tokenizer(LINES, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == LINES
    assert tokenizer.decode(tokenizer(" Two words .")["input_ids"], skip_special_tokens=True).strip() == "Two words ."
    assert capfd.readouterr().err == ""


def test_data_sets_have_the_published_columns_and_what_is_awkward_in_them(made):
    import io

    import pyarrow.parquet as pq

    def table(name: str, split: str):
        _, files = made["dataset", DATASETS[name].repo]
        return pq.read_table(io.BytesIO(files[DATASETS[name].splits[split][0]]))

    rows = table("wikitext-2", "test")["text"].to_pylist()
    assert "" in rows and any(row.startswith(" = ") for row in rows)
    books = table("pg19", "test")
    assert {"short_book_title", "publication_date", "url", "text"} == set(books.column_names)
    assert len(books) == texts.BOOKS and all(len(book) == texts.BOOK for book in books["text"].to_pylist()[:10])
    alpaca = table("alpaca", "train").to_pylist()
    assert {"instruction", "input", "output", "text"} == set(alpaca[0])
    assert any(not row["input"] for row in alpaca) and any("    return" in row["output"] for row in alpaca)


def test_the_command_says_what_it_ran(capsys):
    assert rehearse.main(["--lab", "9.9"]) == 1
    assert "There is no lab '9.9'" in capsys.readouterr().err


def test_labs_name_what_the_catalogue_lists_for_them():
    """A model in a lab's settings of scale full is listed for that lab, so that `make fetch LAB=` brings it."""
    for lab in notebooks.labs():
        (cell,) = [cell for cell in notebooks.read(lab).cells if cell.id == "settings"]
        names = {node.value for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Constant)} & set(
            MODELS
        )
        listed = {name for name, source in SOURCES.items() if lab in source.labs}
        optional = {name for name in names if not MODELS[name].labs}
        assert names - optional <= listed, lab
