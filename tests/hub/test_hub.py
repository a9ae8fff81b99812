"""Real clients against a hub on localhost: what is fetched, what survives a fault, what never runs, what is deleted."""

import io
import json
import mmap
import multiprocessing
import os
import re
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pandas as pd
import pytest
from conftest import cached_pages, small_disk
from rehearsal.hub import LocalHub
from rehearsal.texts import parquet
from small_models import SMALL, write

from shared import files
from shared.hub.catalogue import DATASETS, MODELS, SOURCES

pytestmark = pytest.mark.slow

TOKENIZER = files.ROOT / "data" / "tiny" / "tokenizer"
KINDS = {
    "mamba": "mamba",
    "pythia": "transformer",
    "olmoe": "olmoe",
    "deepseek": "deepseek-moe",
    "jamba": "jamba",
    "mixtral": "mixtral",
}
ALPACA, PG19 = DATASETS["alpaca"], DATASETS["pg19"]
TRAP = "open({trap!r}, 'w').close()\n"


def wikitext_files() -> dict[str, bytes]:
    """The two configurations, with several shards, the same test articles, and empty rows between as published."""
    rows = {"test": ["", " = Title = \n", "", " A line . \n"], "validation": [" Other . \n"], "train": [" Much . \n"]}
    files = {}
    for name in ("wikitext-2", "wikitext-103"):
        for split, names in DATASETS[name].splits.items():
            for part, file in enumerate(names):
                files[file] = parquet(text=rows[split] if split == "test" else [f" {name} {part} \n", *rows[split]])
    return files


def alpaca_file(examples: int = 1200) -> bytes:
    made = {key: [f"{key} {i}" for i in range(examples)] for key in ("instruction", "input", "output", "text")}
    made["input"][0] = ""
    return parquet(**made)


def pg19_file(books: int = 12) -> bytes:
    text = [f"Book {i}. " + "A long sentence. " * 400 for i in range(books)]
    titles = [f"Title {i}" for i in range(books)]
    return parquet(short_book_title=titles, publication_date=[1900] * books, url=["u"] * books, text=text)


@pytest.fixture(scope="session")
def published(tmp_path_factory) -> dict:
    """Every repository of the course in its real layout, small: {(kind, repo): (revision, {path: content})}."""
    folder, repos = tmp_path_factory.mktemp("repos"), {}
    trap = str(tmp_path_factory.getbasetemp() / "executed")
    for name, source in MODELS.items():
        kind = next(kind for start, kind in KINDS.items() if name.startswith(start))
        at = folder / name
        # Mamba's files are float32, whatever the course loads; several shards where the published ones are several.
        write(at, kind, **({"max_shard_size": "20KB"} if name in ("mamba-2.8b", "deepseek-moe-16b") else {}))
        shutil.copytree(TOKENIZER, at, dirs_exist_ok=True)
        config = json.loads((at / "config.json").read_text()) | {"dtype": "float32"}
        if kind == "deepseek-moe":
            config["auto_map"] = {"AutoModelForCausalLM": "modeling_deepseek.DeepseekForCausalLM"}
            (at / "modeling_deepseek.py").write_text(TRAP.format(trap=trap))
        (at / "config.json").write_text(json.dumps(config))
        (at / "pytorch_model.bin").write_bytes(b"the same weights as a pickle" * 10)
        (at / "README.md").write_text("# A model card")
        files = {file.relative_to(at).as_posix(): file.read_bytes() for file in at.rglob("*") if file.is_file()}
        repos["model", source.repo] = (source.revision, files)
    repos["dataset", "Salesforce/wikitext"] = (DATASETS["wikitext-2"].revision, wikitext_files() | {"README.md": b"#"})
    repos["dataset", PG19.repo] = (PG19.revision, {PG19.patterns[0]: pg19_file(), "README.md": b"#"})
    repos["dataset", ALPACA.repo] = (ALPACA.revision, {ALPACA.patterns[0]: alpaca_file(), "README.md": b"#"})
    return repos


@pytest.fixture(scope="session")
def configs(published, tmp_path_factory):
    """A folder with the configs of what is served, so that sizes are those of the small models."""
    folder = tmp_path_factory.mktemp("configs")
    for name, source in MODELS.items():
        (folder / f"{name}.json").write_bytes(published["model", source.repo][1]["config.json"])
    return folder


@pytest.fixture
def hub(published, configs):
    """A hub with all of them, new for each test."""
    server = LocalHub()
    server.configs = configs
    server.repos.update({key: (revision, dict(files)) for key, (revision, files) in published.items()})
    yield server
    server.shutdown()
    server.server_close()


# A new process that has these from the start spares seconds. None of them reads what tests set in the environment: the
# hub's clients, transformers and the course are imported anew in each process.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torch._dynamo", "scipy.stats", "PIL.Image", "pandas", "pyarrow.dataset"])
BEGIN = """
import os
os.environ.clear()
os.environ.update({environment!r})
os.chdir({folder!r})
for descriptor, file in enumerate({written!r}, 1):
    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
"""


class Client:
    """A machine with caches of its own: `python(code)` runs the real clients there and returns what it printed."""

    def __init__(self, hub, home):
        self.home = home
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "TRANSFORMERS_"))}
        self.environment = {**keep, "HF_ENDPOINT": hub.address, "HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        self.environment["COURSE_MODELS"] = str(hub.configs)

    def start(self, *command, **environment) -> subprocess.Popen:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=self.environment | environment, cwd=files.ROOT, **pipes)

    def fork(self, code: str, **environment):
        """A process of FORKS that does this, and the two files with what it says on stdout and on stderr."""
        written = [tempfile.mkstemp(dir=self.home.parent)[1] for _ in range(2)]
        begin = BEGIN.format(environment=self.environment | environment, folder=str(files.ROOT), written=written)
        process = FORKS.Process(target=exec, args=(begin + code, {"__name__": "__main__"}), daemon=True)
        process.start()
        return process, *map(Path, written)

    def python(self, code: str, prefix=(), **environment) -> list[str]:
        if prefix:
            run = self.start(*prefix, sys.executable, "-c", code, **environment)
            said, beside = run.communicate(timeout=120)
            assert run.returncode == 0, said + beside
        else:
            process, *written = self.fork(code, **environment)
            process.join(120)
            said, beside = (file.read_text() for file in written)
            assert process.exitcode == 0, said + beside
        return said.splitlines()

    def make(self, *arguments) -> subprocess.CompletedProcess:
        command = ["make", "--no-print-directory", *arguments]
        return subprocess.run(command, env=self.environment, cwd=files.ROOT, capture_output=True, text=True)

    def leftovers(self) -> list[str]:
        return [str(path) for pattern in ("*.incomplete", ".fetching-*") for path in self.home.rglob(pattern)]


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path / "home")


# Prints the class and the sentence of the course's own error, or what the expression gives.
TRY = """
from shared import data
from shared.hub import fetch
from shared.errors import CourseError
try:
    print("gave", {0})
except CourseError as error:
    print(type(error).__name__, error)
"""


# As the command line, with arguments.
PROGRAM = """
import runpy, sys
sys.argv[1:] = {0!r}
runpy.run_path("scripts/hub.py", run_name="__main__")
"""


def attempt(client, expression: str = "fetch.fetch('alpaca').name", **options) -> str:
    lines = client.python(TRY.format(expression), **options)
    assert len(lines) == 1, lines
    return lines[0]


def one_sentence(said: str) -> bool:
    """A class, then one sentence that ends with a full stop: no frames, no second sentence."""
    return bool(re.fullmatch(r"\w+ (?!.*[.] [A-Z])[^\n]+[^. ]\.", said))


# ------------------------------------------------------------------------------------------------------------ data sets

READ = """
from shared import data
print(repr(data.wikitext("2")), repr(data.wikitext("103")))
print(len(data.pg19()), data.pg19(3)[2][:8], len(data.pg19(1)[0]))
print(len(data.alpaca()), data.alpaca(2)[1]["output"], data.alpaca(1).column_names)
print(repr(data.format_instruction(data.alpaca(1)[0])))
"""
READ_GIVES = [
    "' = Title = \\n A line . \\n' ' = Title = \\n A line . \\n'",
    "10 Book 2.  6808",
    "1000 output 1 ['instruction', 'input', 'output', 'text']",
    "'### Instruction:\\ninstruction 0\\n\\n### Response:\\noutput 0'",
]


def test_data_sets_come_from_the_hub_then_from_the_cache_and_only_what_is_needed(hub, client):
    assert client.python(READ) == READ_GIVES
    fetched = hub.got()
    assert sorted(fetched) == sorted(
        # Both versions of WikiText have the same test file here: one blob, fetched once.
        [DATASETS["wikitext-2"].splits["test"][0], PG19.patterns[0], ALPACA.patterns[0]]
    )
    asked = len(hub.asked)
    assert client.python(READ, HF_HUB_OFFLINE="1") == READ_GIVES
    assert client.python(READ, HF_ENDPOINT="http://127.0.0.1:9") == READ_GIVES  # nothing listens there
    assert client.python(READ) == READ_GIVES
    assert [path for _, path, _ in hub.asked[asked:] if "agent" not in path] == []


def test_another_split_is_fetched_alone_and_its_shards_are_joined(hub, client):
    assert attempt(client, "repr(data.wikitext('103', 'train'))") == (
        "gave ' wikitext-103 0 \\n Much . \\n wikitext-103 1 \\n Much . \\n'"
    )
    assert hub.got() == list(DATASETS["wikitext-103"].splits["train"])


@pytest.mark.parametrize(
    ("expression", "says"),
    [
        ("data.wikitext('3')", "not '3' and 'test'."),
        ("data.wikitext('2', 'dev')", "not '2' and 'dev'."),
        ("data.pg19(13)", "There are 12 books, and 13 were asked for: choose from 1 to 12."),
        ("data.alpaca(0)", "There are 1,200 examples, and 0 were asked for"),
    ],
)
def test_what_a_data_set_does_not_have_is_said_in_one_sentence(client, expression, says):
    said = attempt(client, expression)
    assert one_sentence(said) and said.startswith("BadInput") and says in said


@pytest.mark.parametrize("offline", ["HF_HUB_OFFLINE", "nothing listens"])
def test_without_network_and_cache_the_sentence_says_how_to_get_it(client, offline):
    environment = {"HF_HUB_OFFLINE": "1"} if offline == "HF_HUB_OFFLINE" else {"HF_ENDPOINT": "http://127.0.0.1:9"}
    start = time.perf_counter()
    said = attempt(client, "data.alpaca()", **environment)
    assert time.perf_counter() - start < 15
    assert one_sentence(said) and said.startswith("Missing alpaca is not complete") and "24.2 MB" in said
    assert "`make fetch NAME=alpaca`" in said and ("HF_HUB_OFFLINE is set" in said) == (offline == "HF_HUB_OFFLINE")


NO_ADDRESS = ["hf-mirror.example", "localhost:8080", "https://hf mirror.example", "", "https://", "file:///tmp"]


@pytest.mark.parametrize("endpoint", [*NO_ADDRESS, "https://hf-mirror.example:port", "[::1"])
def test_an_endpoint_that_is_no_address_is_named(client, endpoint):
    said = attempt(client, HF_ENDPOINT=endpoint)
    assert one_sentence(said) and said.startswith("Missing alpaca is not complete") and "(HF_ENDPOINT is " in said


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ALL_PROXY", "nonsense"),
        ("all_proxy", "http://[::1"),
        ("HTTPS_PROXY", "socks9://host:1"),
        ("HTTP_PROXY", "http://"),
        ("http_proxy", "http://host:port"),
        ("ALL_PROXY", "socks5://127.0.0.1:9"),  # which wants a package
        ("SSL_CERT_FILE", "/nowhere.pem"),
    ],
)
def test_a_proxy_or_a_certificate_file_that_cannot_be_used_is_named_at_once(client, variable, value):
    start = time.perf_counter()
    client.environment[variable] = value
    done = client.start(sys.executable, "-c", TRY.format("fetch.fetch('alpaca').name"))
    said, beside = done.communicate(timeout=60)
    assert time.perf_counter() - start < 15 and beside == ""
    assert one_sentence(said.strip()) and said.startswith("Missing alpaca is not complete") and variable in said, said


def test_the_password_of_a_proxy_is_not_repeated(client):
    assert "secret" not in attempt(client, ALL_PROXY="http://student:secret@127.0.0.1:9")


NO_PLACE = [
    ("HF_HOME", "/proc/x"),
    ("HF_HOME", "/dev/null/x"),
    ("HF_HUB_CACHE", "/sys/x"),
    ("HF_DATASETS_CACHE", "/proc/x"),
]


@pytest.mark.parametrize(("variable", "place"), NO_PLACE)
def test_a_place_where_no_folder_can_be_made_is_no_small_disk(client, variable, place):
    said = attempt(client, "len(data.alpaca())", **{variable: place})
    assert one_sentence(said) and said.startswith("Missing ") and f"{place}" in said and "cannot be made" in said, said
    assert f"set {variable}" in said or variable == "HF_HUB_CACHE"


def test_a_disk_that_cannot_be_written_is_no_small_disk(client, tmp_path):
    prefix = small_disk(client.home, "20k")
    read_only = tuple(part.replace("size=20k", "ro,size=20k") for part in prefix)
    said = attempt(client, prefix=read_only)  # 20 kB would not do either
    assert one_sentence(said) and said.startswith("Missing ") and "cannot be made" in said, said


def test_the_room_for_several_is_not_looked_for_where_no_folder_can_be_made(client):
    client.environment["HF_HOME"] = "/proc/x"
    process, *written = client.fork(PROGRAM.format(["fetch", "--lab", "2.4.6"]))
    process.join(60)
    said, beside = (file.read_text() for file in written)
    assert process.exitcode == 1 and said == "" and one_sentence(f"Missing {beside.strip()}"), beside
    assert "cannot be made" in beside and "too small" not in beside


@pytest.fixture
def own_certificate(hub, tmp_path):
    """The hub as seen through a proxy that encrypts with a certificate of its own; the certificate's file."""
    file, key = tmp_path / "network.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=127.0.0.1"]
    if not shutil.which("openssl"):
        pytest.skip("no openssl to make a certificate")
    made += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", file]
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, key)
    hub.socket = context.wrap_socket(hub.socket, server_side=True, do_handshake_on_connect=False)
    return file


@pytest.mark.parametrize("asked", [True, False])
def test_a_certificate_of_the_network_is_named_with_the_variable_that_the_client_reads(
    hub, client, own_certificate, asked
):
    client.environment["HF_ENDPOINT"] = f"https://127.0.0.1:{hub.server_port}"
    # The first question and the hub's client may trust different certificates.
    first = "" if asked else IMPATIENT + "from shared.hub import fetch\nfetch._unreachable = lambda: ''\n"
    (said,) = client.python(first + TRY.format("fetch.fetch('alpaca').name"), REQUESTS_CA_BUNDLE=str(own_certificate))
    assert one_sentence(said) and said.startswith("Missing ") and "set SSL_CERT_FILE to the file" in said, said
    assert attempt(client, SSL_CERT_FILE=str(own_certificate)) == f"gave {ALPACA.revision}"


# --------------------------------------------------------------------------------------------------------------- models

LOAD = """
import torch
from shared import memory, models
from shared.hub.catalogue import MODELS
from shared.machine import pool
pool.available = lambda device=None: 10**12  # small checkpoints under the names of large models
for name in MODELS:
    model, tokenizer = models.load(name, device="cpu")
    ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
    out = model.generate(ids, max_new_tokens=2, min_new_tokens=2, do_sample=False, pad_token_id=0)
    kinds = {str(parameter.dtype) for parameter in model.parameters()}
    print(name, model.config.model_type, *kinds, out.shape[1] - ids.shape[1])
"""


def test_every_model_loads_and_generates_online_then_offline_then_with_the_hub_gone(hub, client, tmp_path_factory):
    said = client.python(LOAD)
    assert [line.split()[0] for line in said] == list(MODELS)
    odd = [line for line in said if not line.endswith(" torch.bfloat16 2")]  # whatever the config says
    assert not odd
    fetched = hub.got()
    assert len(fetched) == len(set((path for _, path, _ in hub.asked if "/resolve/" in path)))  # each file once
    assert not [name for name in fetched if name.endswith((".bin", ".py", ".md"))]
    assert sum(name.startswith("model-000") for name in fetched) > 4  # several shards were among them
    assert not (tmp_path_factory.getbasetemp() / "executed").exists()
    asked = len(hub.asked)
    assert client.python(LOAD, HF_HUB_OFFLINE="1") == said
    assert client.python(LOAD, HF_ENDPOINT="http://127.0.0.1:9") == said
    assert len(hub.asked) == asked
    assert client.leftovers() == []


def test_a_repository_with_pickled_weights_only_is_refused_and_none_of_it_is_fetched(hub, client):
    revision, files = hub.repos["model", MODELS["pythia-160m"].repo]
    hub.repos["model", MODELS["pythia-160m"].repo] = (
        revision,
        {name: body for name, body in files.items() if not name.endswith(".safetensors")},
    )
    said = attempt(client, "fetch.fetch('pythia-160m')")
    assert one_sentence(said) and said.startswith("Missing EleutherAI/pythia-160m has no weights as safetensors")
    assert hub.got() == []


def test_a_missing_shard_is_fetched_again_and_a_damaged_one_is_named(hub, client):
    attempt(client, "fetch.fetch('mamba-2.8b').name")
    shard = sorted(client.home.rglob("model-00002-of-*.safetensors"))[0]
    shard.unlink()
    attempt(client, "fetch.fetch('mamba-2.8b').name")
    assert shard.exists() and hub.sent(shard.name) == shard.stat().st_size  # its content was still in the cache
    blob = shard.resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    code = "__import__('shared.models').models.load('mamba-2.8b', device='cpu')"
    said = attempt(client, code)
    assert one_sentence(said) and said.startswith("DamagedCheckpoint") and shard.name in said
    assert "delete" in said and "load again" in said


LOAD_ONE = "len(__import__('shared.models').models.load('mamba-130m', device='cpu')[1])"


def test_a_checkpoint_without_its_tokenizer_is_not_complete_and_is_made_whole_again(hub, client):
    attempt(client, "fetch.fetch('mamba-130m')")
    (file,) = client.home.rglob("tokenizer.json")
    file.unlink()
    file.resolve().unlink(missing_ok=True)
    assert attempt(client, "data.cached().complete['mamba-130m']") == "gave False"
    offline = attempt(client, LOAD_ONE, HF_ENDPOINT="http://127.0.0.1:9")
    assert one_sentence(offline) and offline.startswith("Missing mamba-130m is not complete")
    assert attempt(client, LOAD_ONE) == "gave 1024" and file.exists()


def test_a_tokenizer_of_another_model_is_named_and_a_new_download_mends_it(hub, client, tmp_path):
    from tokenizers import Tokenizer, models

    attempt(client, "fetch.fetch('mamba-130m')")
    (file,) = client.home.rglob("tokenizer.json")
    file.unlink()
    Tokenizer(models.WordLevel({"one": 0, "two": 1}, unk_token="one")).save(str(file))
    said = attempt(client, LOAD_ONE)
    assert one_sentence(said) and re.search(
        r"DamagedCheckpoint .* a tokenizer of \d tokens, and mamba-130m has 1,024", said
    )
    shutil.rmtree(re.search(r"delete (\S+)", said)[1])
    assert attempt(client, LOAD_ONE) == "gave 1024"


def test_a_checkpoint_of_another_width_is_named_although_its_own_files_agree(hub, client, tmp_path, monkeypatch):
    attempt(client, "fetch.fetch('mamba-130m')")
    monkeypatch.setitem(SMALL, "mamba", SMALL["mamba"] | {"hidden_size": 16})
    write(tmp_path / "narrow", "mamba")
    (file,) = client.home.rglob("model.safetensors")
    for name in ("config.json", "model.safetensors"):
        (file.parent / name).unlink()
        shutil.copy(tmp_path / "narrow" / name, file.parent / name)
    said = attempt(client, LOAD_ONE)
    assert one_sentence(said) and re.search(
        r"DamagedCheckpoint .* a checkpoint of [\d,]+ parameters, and mamba-130m", said
    )
    shutil.rmtree(re.search(r"delete (\S+)", said)[1])
    assert attempt(client, LOAD_ONE) == "gave 1024"


# --------------------------------------------------------------------------------------------------------------- faults

NAME = ALPACA.patterns[0].rsplit("/", 1)[-1]
IMPATIENT = "import time; time.sleep = lambda seconds: None\n"  # the client waits half a minute for a hub that is down
RIGHT = f"gave {ALPACA.revision}"


@pytest.mark.parametrize(
    ("faults", "tries"),
    [
        ({("GET", NAME): [("cut", 5000)]}, 2),
        ({("GET", NAME): [("cut", 5000), ("cut", 3000)]}, 3),
        ({("GET", NAME): [500, 500]}, 3),
        ({("HEAD", NAME): [500, 500]}, 1),
        ({("GET", "tree"): [500, 503]}, 1),
        ({("GET", NAME): [(429, {"Retry-After": "1"})]}, 2),
        ({("GET", "tree"): [(429, {"Retry-After": "1"})]}, 1),
        ({("GET", NAME): [("content", b"x" * len(alpaca_file()))]}, 2),
    ],
    ids=["cut", "cut twice", "500", "500 HEAD", "500 tree", "429", "429 tree", "wrong content"],
)
def test_what_tends_to_pass_ends_in_the_right_data(hub, client, faults, tries):
    hub.faults.update(faults)
    assert attempt(client) == RIGHT
    assert [method for method, path, _ in hub.asked if path.endswith(NAME) and method == "GET"] == ["GET"] * tries
    assert not any(hub.faults.values()) and client.leftovers() == []
    assert client.python("from shared import data; print(len(data.alpaca()))", HF_HUB_OFFLINE="1") == ["1000"]
    if "cut" in str(faults):  # went on where it was cut: no byte was sent twice
        assert hub.sent(NAME) == len(alpaca_file())


def drop_repository(hub):
    del hub.repos["dataset", ALPACA.repo]


def move_on(hub):
    hub.repos["dataset", ALPACA.repo] = ("f" * 40, hub.repos["dataset", ALPACA.repo][1])


def drop_file(hub):
    hub.repos["dataset", ALPACA.repo][1].pop(ALPACA.patterns[0])


def faults(**given):
    return lambda hub: hub.faults.update(
        {("GET", {"file": NAME}.get(name, name)): list(f) for name, f in given.items()}
    )


@pytest.mark.parametrize(
    ("kind", "break_it", "says"),
    [
        ("404", faults(tree=[404] * 9), "does not give the pinned revision dce01c9 to you"),
        ("no repo", drop_repository, "does not give the pinned revision dce01c9 to you"),
        ("revision", move_on, "does not give the pinned revision dce01c9 to you"),
        (
            "no file",
            drop_file,
            f"does not list {ALPACA.patterns[0]} at the pinned revision: update the course (`make update`)",
        ),
        (
            "gated",
            faults(tree=[(401, {"X-Error-Code": "GatedRepo"})]),
            "is gated: accept its terms there, then log in with `hf",
        ),
        (
            "gated file",
            faults(file=[(403, {"X-Error-Code": "GatedRepo"})] * 9),
            "is gated: accept its terms there, then log in",
        ),
        ("429", faults(tree=[(429, {"Retry-After": "1"})] * 99), "had too many requests from here and asks to wait"),
        (
            "wrong content",
            faults(file=[("content", b"x" * len(alpaca_file()))] * 2),
            f"{NAME} of tatsu-lab/alpaca arrived twice with",
        ),
        ("short", faults(file=[("content", b"short")] * 9), "the connection to"),
        ("502", faults(tree=[502] * 99), "answers with error 502: try later"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 14 else "",
)
def test_what_does_not_pass_is_one_sentence_and_the_cache_is_usable_afterwards(hub, client, kind, break_it, says):
    whole = dict(hub.repos)
    kept = hub.repos["dataset", ALPACA.repo][0], dict(hub.repos["dataset", ALPACA.repo][1])
    break_it(hub)
    (said,) = client.python(IMPATIENT + TRY.format("fetch.fetch('alpaca').name"))
    assert one_sentence(said) and said.startswith("Missing ") and says in said, said
    assert "alpaca" in said and (NAME in said) == ("file" in kind or kind in ("wrong content", "short"))
    hub.repos.update(whole | {("dataset", ALPACA.repo): kept})
    hub.faults.clear()
    assert attempt(client) == RIGHT and client.leftovers() == []


def test_a_disk_that_is_too_small_is_refused_before_the_download(hub, client):
    said = attempt(client, prefix=small_disk(client.home, "20k"))
    assert one_sentence(said) and said.startswith("DiskFull The disk of ") and "free): make room (`make cache`" in said
    assert hub.got() == []


def test_a_disk_that_fills_up_during_the_download_is_one_sentence_and_leaves_nothing_behind(hub, client):
    hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]] += b" " * 300_000
    code = f"""
from pathlib import Path
from shared import files
from shared.hub import fetch
from shared.errors import DiskFull
files.free = lambda folder: 10**12  # somebody else fills the disk after we looked
try:
    fetch.fetch("alpaca")
except DiskFull as error:
    print("DiskFull", error)
print([path.name for path in Path({str(client.home)!r}).rglob("*.incomplete")])
"""
    said, left = client.python(code, prefix=small_disk(client.home, "200k"))
    assert one_sentence(said) and "(it is full): make room" in said and left == "[]"
    assert attempt(client) == RIGHT


def test_a_disk_that_is_too_small_for_the_arrow_copy_is_one_sentence(hub, client, tmp_path):
    disk = tmp_path / "small"
    prefix = small_disk(disk, "20k")
    said = attempt(client, "len(data.alpaca())", prefix=prefix, HF_DATASETS_CACHE=str(disk))
    assert one_sentence(said) and said.startswith("DiskFull ") and "Arrow copy of alpaca (it is full)" in said


def test_two_processes_that_want_the_same_file_fetch_it_once(hub, client):
    hub.pause = 0.02
    hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]] += os.urandom(2_000_000)
    both = [client.start(sys.executable, "-c", TRY.format("fetch.fetch('alpaca').name")) for _ in range(2)]
    said = [process.communicate()[0].strip() for process in both]
    assert said == [RIGHT, RIGHT]
    assert hub.sent(NAME) == len(hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]])
    assert client.leftovers() == []


@pytest.mark.parametrize("seed", range(2))
def test_make_fetch_killed_at_any_moment_goes_on_with_the_interrupted_file_alone(hub, client, seed):
    repo = MODELS["mamba-2.8b"].repo
    files = hub.repos["model", repo][1]
    for number in range(4):
        files[f"model-extra-{number}.safetensors"] = os.urandom(500_000)
    hub.pause, kills = 0.02, 0
    for _ in range(3):  # the moments differ from seed to seed and from try to try
        fetching, *_ = client.fork(PROGRAM.format(["fetch", "--name", "mamba-2.8b"]))
        before = len(hub.asked)
        while not any("resolve" in path for _, path, _ in hub.asked[before:]) and fetching.is_alive():
            time.sleep(0.01)
        time.sleep(0.1 + 0.2 * seed)
        kills += fetching.is_alive()
        fetching.kill()
        fetching.join()
    assert kills, "it was over before the first kill: nothing was tested"
    hub.pause = 0
    done = client.make("fetch", "NAME=mamba-2.8b")
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.leftovers() == []
    wanted = [name for name in files if name.endswith(("json", ".safetensors")) or name.startswith("tokenizer")]
    for name in wanted:
        there = client.home.rglob(name)
        assert next(there).read_bytes() == files[name], name
    again = [name for name in wanted if hub.sent(f"/{name}") > len(files[name])]
    assert len(again) <= kills, again


# ---------------------------------------------------------------------------------------------- what is here, and away


def tree(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.endswith(".lock")
    }


@pytest.fixture
def filled(hub, client):
    """A cache with three repositories, of which two share the hash of a file, and things that others put there."""
    shared = hub.repos["dataset", PG19.repo][1][PG19.patterns[0]] = alpaca_file()
    assert hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]] == shared
    client.python('from shared import data\ndata.wikitext("2"), data.wikitext("103"), data.alpaca(), data.pg19(1)')
    other = client.home / "hub" / "datasets--Salesforce--wikitext" / "snapshots" / ("e" * 40) / "wikitext-2-raw-v1"
    other.mkdir(parents=True)
    blob = next((client.home / "hub" / "datasets--Salesforce--wikitext" / "blobs").iterdir())
    (other / "test-00000-of-00001.parquet").symlink_to(os.path.relpath(blob, other))
    (client.home / "datasets" / "somebody___else").mkdir()
    (client.home / "datasets" / "somebody___else" / "x.arrow").write_bytes(b"x")
    return client


def clear(client, name: str) -> int:
    code = f"from shared import data; print('freed', data.clear_cache({name!r}, dry_run=False))"
    return int(client.python(code)[-1].split()[1])


def test_clearing_removes_download_and_arrow_copy_of_one_name_and_touches_nothing_else(filled):
    before = tree(filled.home)
    assert sum("alpaca" in path for path in before) >= 3  # the snapshot's link, its blob, the Arrow copy
    freed = clear(filled, "alpaca")
    after = tree(filled.home)
    assert {path for path in before if "alpaca" not in path} == set(after)
    assert all(after[path] == before[path] for path in after)
    assert freed > len(alpaca_file())
    assert attempt(filled, "data.alpaca(1)", HF_HUB_OFFLINE="1").startswith("Missing alpaca is not complete")
    assert filled.python("from shared import data; print(len(data.pg19(1)))", HF_HUB_OFFLINE="1") == ["1"]


def test_clearing_keeps_content_that_another_data_set_or_revision_still_uses(filled):
    before = tree(filled.home)
    clear(filled, "wikitext-2")
    gone = set(before) - set(tree(filled.home))
    assert gone and all("wikitext-2-raw-v1" in path and "e" * 40 not in path for path in gone)
    assert attempt(filled, "len(data.wikitext('103'))", HF_HUB_OFFLINE="1").startswith("gave ")
    clear(filled, "wikitext-103")
    left = [path for path in tree(filled.home) if "wikitext" in path.lower()]
    assert [path for path in left if "e" * 40 in path] and not [path for path in left if "103" in path]


def test_a_dry_run_says_the_same_and_deletes_nothing(filled):
    before = tree(filled.home)
    code = "from shared import data; print('freed', data.clear_cache('alpaca'))"
    said = filled.python(code)
    assert all(line.startswith("would delete ") for line in said[:-1]) and tree(filled.home) == before
    assert clear(filled, "alpaca") == int(said[-1].split()[1])


def test_a_path_outside_the_source_is_found_before_anything_is_deleted(filled):
    before = tree(filled.home)
    code = """
from pathlib import Path
from shared.hub import store
plan, elsewhere = store._plan, Path(store.arrow(store.SOURCES["pg19"]))
store._plan = lambda name: (plan(name)[0], [elsewhere])
try:
    store.clear_cache("alpaca", dry_run=False)
except store.CourseError as error:
    print(error)
"""
    assert "is not of alpaca" in filled.python(code)[-1] and tree(filled.home) == before


LINKED = ["hub/datasets--{0}", "hub/datasets--{0}/snapshots", "hub/datasets--{0}/blobs", "hub/datasets--{0}/refs"]
LINKED += ["hub/datasets--{0}/snapshots/{2}", "hub/.locks", "hub/.locks/datasets--{0}", "datasets/{1}"]


@pytest.mark.parametrize("linked", LINKED)
def test_where_a_folder_of_the_cache_is_a_link_nothing_is_deleted(filled, tmp_path, linked):
    made = linked.format(ALPACA.repo.replace("/", "--"), ALPACA.repo.replace("/", "___"), ALPACA.revision)
    folder, elsewhere = filled.home / made, tmp_path / "elsewhere"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, elsewhere)
    (elsewhere / "mine").write_text("mine")
    (elsewhere / "empty").mkdir()
    folder.symlink_to(elsewhere)
    before = tree(elsewhere), tree(filled.home)
    done = filled.make("cache", "CLEAR=alpaca")
    said = done.stderr.splitlines()[0]
    assert done.returncode and said.startswith(f"{folder} is a link to {elsewhere}") and "Traceback" not in done.stderr
    assert (tree(elsewhere), tree(filled.home)) == before and (elsewhere / "empty").exists()


def test_a_cache_on_another_disk_is_cleared_and_a_file_that_a_snapshot_links_to_elsewhere_stays(filled, tmp_path):
    mine = tmp_path / "mine.parquet"
    for name in ("alpaca", "wikitext-2"):
        link = next(p for p in filled.home.rglob("*.parquet") if p.match(f"*{DATASETS[name].revision}/*/*"))
        shutil.copy(link, mine)
        link.unlink()
        link.symlink_to(mine)
    shutil.move(filled.home, tmp_path / "disk")
    filled.home.symlink_to(tmp_path / "disk")
    for name in ("alpaca", "wikitext-2"):
        done = filled.make("cache", f"CLEAR={name}")
        assert done.returncode == 0 and "freed" in done.stdout, done.stderr
    assert mine.exists() and "alpaca" not in filled.make("cache").stdout


def test_an_unknown_name_is_not_cleared(client):
    said = attempt(client, "data.clear_cache('wikitext', dry_run=False)")
    assert one_sentence(said) and said.startswith("BadInput There is no 'wikitext' to clear") and "pg19" in said


def test_make_cache_shows_what_is_there_and_clears_one(filled):
    shown = filled.make("cache").stdout
    assert re.search(r"alpaca +[\d.]+ kB +[\d.]+ kB +yes +2\.4\.6", shown), shown
    assert "wikitext-103" in shown and "in all" in shown and "mamba" not in shown
    cleared = filled.make("cache", "CLEAR=pg19")
    assert cleared.returncode == 0 and "freed" in cleared.stdout and "pg19" not in filled.make("cache").stdout
    wrong = filled.make("cache", "CLEAR=nothing")
    assert wrong.returncode != 0 and "There is no 'nothing' to clear" in wrong.stderr


def test_cached_is_a_table_with_sizes_labs_and_whether_it_is_whole(filled):
    printed = filled.python("from shared import data; print(data.cached().to_csv())")
    table = pd.read_csv(io.StringIO("\n".join(printed)), index_col="name")
    assert list(table.index) == ["wikitext-2", "wikitext-103", "pg19", "alpaca"] and table.complete.all()
    assert table.download_bytes["alpaca"] == len(alpaca_file()) and (table.arrow_bytes > 0).all()
    assert "2.4.1" in table.labs["pg19"]


# ----------------------------------------------------------------------------------------------- ahead of class


def test_make_fetch_gets_what_a_lab_needs_and_everything_works_offline_afterwards(hub, client):
    done = client.make("fetch", "LAB=2.4.6", "SCALE=full")
    assert done.returncode == 0, done.stderr
    names = [line.split(":")[0] for line in done.stdout.splitlines()]
    assert names == [name for name, source in SOURCES.items() if "2.4.6" in source.labs] and "alpaca" in names
    offline = {"HF_HUB_OFFLINE": "1"}
    assert client.python("from shared import data; print(len(data.alpaca()))", **offline) == ["1000"]
    load = "from shared import models; print(models.load('mamba-1.4b', device='cpu')[0].config.model_type)"
    assert client.python(load, **offline) == ["mamba"]
    asked = len(hub.asked)
    again = client.python(PROGRAM.format(["fetch", "--lab", "2.4.6", "--scale", "full"]))
    assert again == done.stdout.splitlines() and len(hub.asked) == asked


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["LAB=2.4.5"], "Scale tiny needs no download", 0),
        (["LAB=9.9", "SCALE=full"], "No lab '9.9' needs a download", 1),
        (["NAME=mamba"], "There is no 'mamba' to fetch: the course has mamba-130m", 1),
        (["SCALE=big"], "SCALE=big is unknown", 1),
    ],
)
def test_make_fetch_answers_a_slip_in_one_sentence(client, arguments, says, code):
    done = client.make("fetch", *arguments)
    assert says in done.stdout + done.stderr and bool(done.returncode) == bool(code)
    assert "Traceback" not in done.stderr


def test_the_room_for_all_of_a_lab_is_looked_for_before_the_first_byte(hub, client):
    code = """
import sys
sys.path.insert(0, "scripts")
import hub as command
command.files.free = lambda folder: 3 * 10**9  # more than the data set, less than the models
sys.exit(command.main(["fetch", "--lab", "2.4.6"]))
"""
    process, _, beside = client.fork(code, COURSE_MODELS="")  # with the published sizes
    process.join(60)
    assert process.exitcode == 1 and re.search(r"too small for mamba-1.4b, .*and 3 GB are free", beside.read_text())
    assert not [path for _, path, _ in hub.asked if "/api/" in path or "/resolve/" in path]


PAGES = 300 * mmap.PAGESIZE


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mincore is Linux's")
def test_what_make_fetch_downloaded_is_on_the_disk_and_not_in_memory(hub, client, tmp_path):
    """Of a GPU that shares the memory, a page cache full of downloads can keep CUDA from starting."""
    (tmp_path / "other").write_bytes(os.urandom(PAGES))
    with (tmp_path / "other").open("rb") as file:
        assert cached_pages(file.name) == 1
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_pages(tmp_path / "other") > 0:
        pytest.skip("this file system keeps its files in memory")
    hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]] += os.urandom(PAGES)
    done = client.make("fetch", "NAME=alpaca")
    assert done.returncode == 0, done.stderr
    blob = next(client.home.rglob(NAME)).resolve()
    assert blob.stat().st_size > PAGES and cached_pages(blob) == 0
    assert blob.read_bytes() == hub.repos["dataset", ALPACA.repo][1][ALPACA.patterns[0]]


FSYNC = """
import errno, os
def fsync(descriptor):
    raise OSError(errno.{0}, "played")
os.fsync = fsync
"""


def test_a_file_system_without_fsync_is_no_error_and_a_disk_that_turns_out_full_is(hub, client):
    code = TRY.format("fetch.fetch('alpaca').name")
    (said,) = client.python(FSYNC.format("ENOSPC") + code)
    assert one_sentence(said) and said.startswith("DiskFull ") and "(it is full): make room" in said
    assert client.python(FSYNC.format("EINVAL") + code) == [RIGHT]


def test_a_large_download_is_announced_with_its_size(hub, client):
    code = "from shared.hub import fetch\nfetch.TOLD_FROM = 10_000\nfetch.fetch('alpaca')"
    (said,) = client.python(code)
    assert re.fullmatch(r"alpaca: downloading [\d.]+ kB in 1 files, [\d.]+ [GT]B of disk are free", said), said


# -------------------------------------------------------------------------------------------------------- the catalogue


def test_every_source_is_pinned_to_a_commit_and_no_pattern_fetches_code_or_a_pickle():
    for name, source in SOURCES.items():
        assert re.fullmatch(r"[0-9a-f]{40}", source.revision), name
        assert re.fullmatch(r"[^/]+/[^/]+", source.repo) and source.licence
        assert all(pattern.endswith((".json", ".safetensors", ".parquet", "tokenizer*")) for pattern in source.patterns)
    # The clients' offline test wants a commit of its own for every repository.
    assert len({source.revision for source in SOURCES.values()}) == len({source.repo for source in SOURCES.values()})


def test_importing_the_data_module_is_instant_and_brings_neither_torch_nor_transformers():
    code = "import sys, time; t = time.process_time(); import shared.data; print(time.process_time() - t, *sys.modules)"
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split() for _ in range(5)
    ]
    assert not {"torch", "transformers", "datasets", "pandas", "huggingface_hub"} & set(runs[0])
    assert min(float(run[0]) for run in runs) < 0.05


# ---- further hands --------------------------------------------------------------------------------------------------


def raised(call) -> Exception:
    with pytest.raises(Exception) as error:
        call()
    return error.value


@pytest.mark.parametrize(
    ("problem", "says"),
    [
        (lambda tmp: (tmp / "file" / "hub").mkdir(parents=True), "could not be written to .*/file/hub .*HF_HOME"),
        (lambda tmp: Path("/proc/x").mkdir(), "could not be written to /proc/x .*HF_HOME"),
        (lambda tmp: "hf_\u00e9".encode("ascii"), "HF_TOKEN is no token"),
        (lambda tmp: httpx.Client(proxy="nonsense://x"), "proxy that is set cannot be used"),
        (lambda tmp: httpx.Client(proxy="socks5://127.0.0.1:9"), "proxy that is set cannot be used"),
    ],
    ids=["a file as HF_HOME", "a home that is read-only", "a token", "a proxy", "a proxy that needs a package"],
)
def test_what_a_hand_wrote_into_the_environment_is_named(problem, says, tmp_path):
    from shared.hub import fetch

    (tmp_path / "file").touch()
    error = raised(lambda: problem(tmp_path))
    said = fetch._explained("the list of files of alpaca", "alpaca", ALPACA, error)
    assert re.search(says, str(said)) and one_sentence(f"{type(said).__name__} {said}")


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"a": "../x.safetensors"}}', "[]", '{"weight_map": {"a": null}}', ""]
)
def test_a_damaged_list_of_parts_is_shown_as_not_whole(index, tmp_path, monkeypatch):
    from huggingface_hub import constants

    from shared.hub import store

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    folder = store.snapshot(SOURCES["mamba-130m"])
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors.index.json").write_text(index)
    assert store.cached().complete.to_dict() == {"mamba-130m": False}


@pytest.mark.parametrize("home", ["~no-such-user/x", "~", " ", "relative", "/dev/null"])
def test_any_home_of_the_caches_can_be_looked_into(home, monkeypatch):
    from shared.hub import store

    monkeypatch.setenv("HF_DATASETS_CACHE", home)
    assert store.arrow(ALPACA).name == ALPACA.config
    store.cached()
