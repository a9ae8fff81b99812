"""Perplexity of models on a text of the course, by one process or by several, each with its share of the documents.

    .venv/bin/python scripts/evaluate.py tiny/mamba tiny/jamba --text heldout --processes 2
    torchrun --nnodes 2 --nproc-per-node 1 --rdzv-backend c10d --rdzv-endpoint HOST:29500 scripts/evaluate.py mamba-2.8b
        --text pg19 --carry

Every number of processes gives the same result. Each model's is kept as it comes: a run that was interrupted goes on.
"""

import os
import sys

from shared import files
from shared.errors import BadInput, CourseError
from shared.notebooks import commands, launch

TEXTS = ("heldout", "story", "wikitext", "pg19")
COLUMNS = ("nll", "tokens", "words", "bytes", "token_perplexity", "word_perplexity", "bits_per_byte")
FOLDER = files.BUILD / "evaluate"  # for tracebacks of several processes
WRONG, LOST = 2, 3  # exit codes: a request that cannot be met; another process is gone


def texts(name: str) -> list[str]:
    from shared import data

    if name == "heldout":
        return [document for text in data.tiny_text("heldout").values() for document in text.split("\n\n")]
    return {"story": lambda: [data.tiny_long_text()], "wikitext": lambda: [data.wikitext()], "pg19": data.pg19}[name]()


def sweep_of(options):
    from shared import results

    settings = {key: getattr(options, key) for key in ("text", "window", "stride", "carry", "dtype")}
    return results.Sweep(options.name or f"evaluate-{options.text}", **settings)


def work(options) -> None:
    """What each process does; the first one keeps and prints."""
    import pandas as pd
    import torch
    from torch import distributed

    from shared import evaluate, models
    from shared.machine import pool

    rank, device = int(os.environ.get("RANK", 0)), pool.pick_device()
    if "RANK" in os.environ:
        distributed.init_process_group("gloo")  # what is exchanged are results, not tensors
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    sweep, rows = sweep_of(options), []
    for name in options.models:
        done = [rank == 0 and sweep.has(name)]
        if "RANK" in os.environ:
            distributed.broadcast_object_list(done)  # the first process has the files, perhaps on another machine
        found = None
        if not done[0]:
            model, tokenizer = models.load(name, dtype=getattr(torch, options.dtype), device=device)
            found = evaluate.perplexity(
                model, tokenizer, texts(options.text), options.window, options.stride, options.carry
            )
            del model
        if rank == 0:
            row = sweep.keep(name, lambda found=found: {column: getattr(found, column) for column in COLUMNS})
            print(f"{name}: {row['bits_per_byte']:.4f} bits per byte{', kept from before' * done[0]}", flush=True)
            rows.append({"model": name, **row})
    if rank == 0:
        frame = pd.DataFrame(rows)
        print(frame.to_string(index=False), f"\nsaved to {os.path.relpath(sweep.finish(frame))}", sep="\n")
    if "RANK" in os.environ:
        distributed.barrier()  # who leaves first would close a connection that another still has in use


def start(options, arguments: list[str]) -> int:
    """Start the processes; where one ends too early, all end, and one sentence says so."""
    where = ["--standalone", f"--nproc-per-node={options.processes}"]
    goes_on = "it takes from there what is finished and kept"
    try:
        launch.torchrun([os.path.abspath(__file__), *arguments], where, options.processes, FOLDER, goes_on)
    except launch.Lost as lost:
        if WRONG in lost.codes:
            return WRONG  # it has said why
        kept = sum(sweep_of(options).has(name) for name in options.models)
        print(f"{kept} of {len(options.models)} models are finished and kept. {lost}", file=sys.stderr)
        return LOST
    return 0


@commands.program("Interrupted: the models that are finished are kept, and this command goes on.")
def main(arguments: list[str]) -> int:
    parser = commands.Parser(__doc__)
    parser.add_argument("models", nargs="+", help="names, each an argument or several in one")
    parser.add_argument("--text", default="heldout", type=commands.one_of("TEXT", TEXTS), help=", ".join(TEXTS))
    parser.add_argument("--window", type=commands.whole("WINDOW"), default=256, help="tokens")
    parser.add_argument("--stride", type=commands.whole("--stride"), help="tokens; default: the window")
    parser.add_argument("--carry", action="store_true", help="hand the cache from window to window")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    processes = commands.whole("PROCESSES", most=commands.AT_ONCE)
    parser.add_argument("--processes", type=processes, default=1, help=f"at most {commands.AT_ONCE} on this machine")
    parser.add_argument("--name", help="of the table in build/results")
    options = parser.parse_args(arguments)
    options.models = " ".join(options.models).split()
    if not options.models:
        raise BadInput('MODELS= names no model: give one or more, such as MODELS="tiny/mamba tiny/jamba".')
    try:
        if options.processes > 1 and "RANK" not in os.environ:
            return start(options, arguments)
        work(options)
    except CourseError as error:
        print(error, file=sys.stderr)
        return WRONG
    except RuntimeError as error:
        if "RANK" not in os.environ or not any(word in str(error) for word in ("gloo", "onnection", "TCPStore")):
            raise
        return LOST
    return 0


if __name__ == "__main__":
    if "RANK" in os.environ:  # one of several processes
        launch.worker()
        launch.leave(main(sys.argv[1:]))
    sys.exit(main(sys.argv[1:]))
