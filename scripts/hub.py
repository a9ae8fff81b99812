"""What `make fetch` and `make cache` call: download ahead of class, see what the course keeps, delete one of it."""

import sys
from functools import partial

from shared import files, notebooks
from shared.errors import BadInput, DiskFull
from shared.hub import fetch, store
from shared.hub.catalogue import SOURCES
from shared.notebooks import commands
from shared.units import human


@commands.program("Interrupted: finished files are kept, the same command goes on from there.")
def main(arguments: list[str] | None = None) -> int:
    """`fetch` downloads what a lab needs at scale full, or one source; `cache` shows what is here, or clears one."""
    parser = commands.Parser(main.__doc__)
    parser.add_argument("command", choices=("fetch", "cache"))
    parser.add_argument("--name", default="", help="one model or data set")
    parser.add_argument("--lab", default="", help="fetch: one lab, such as 2.4.5 (default: all)")
    scale = commands.one_of("SCALE", notebooks.SCALES)
    parser.add_argument("--scale", default="full", type=scale, help="fetch: tiny needs no download")
    parser.add_argument("--clear", default="", help="cache: delete this model or data set")
    options = parser.parse_args(arguments)
    if options.command == "fetch":
        fetch_all(_chosen(options.name, options.lab, options.scale))
    elif options.clear:
        print(f"freed {human(store.clear_cache(options.clear, dry_run=False))}")
    else:
        print(_table())
    return 0


def _chosen(name: str, lab: str, scale: str) -> list[str]:
    if name:
        if name not in SOURCES:
            raise BadInput(f"There is no {name!r} to fetch: the course has {', '.join(SOURCES)}.")
        return [name]
    if scale == "tiny":
        print(
            "Scale tiny needs no download: its models and text ship with the course. SCALE=full fetches the real ones."
        )
        return []
    chosen = [name for name, source in SOURCES.items() if (lab in source.labs if lab else source.labs)]
    if not chosen:
        raise BadInput(f"No lab {lab!r} needs a download: the labs are 2.4.1 to 2.4.6.")
    return chosen


def fetch_all(names: list[str]) -> None:
    """Fetch several sources, after a look whether the disk has room for all of them together."""
    if not names:
        return
    from shared.models.sizes import download_bytes  # which imports torch

    missing = [name for name in names if not store.local(name)]
    if missing:
        fetch.check_place(store.storage(SOURCES[missing[0]]))
    # One alone is looked at by `fetch`, with the sizes that the hub lists.
    need = sum(download_bytes(name) for name in missing) if len(missing) > 1 else 0
    if need > (free := files.free(store.storage(SOURCES[names[0]]))):
        raise DiskFull(
            fetch.too_small(", ".join(missing), SOURCES[names[0]], f"{human(need)}, and {human(free)} are free")
        )
    for name in names:
        print(f"{name}: {fetch.fetch(name, size=partial(download_bytes, name))}", flush=True)


def _table() -> str:
    """What `make cache` prints."""
    rows = store.cached()
    if rows.empty:
        return "The course keeps nothing in the Hugging Face caches yet."
    lines = [f"{'name':<18}{'download':>10}{'Arrow copy':>12}  {'whole':<6} labs"]
    for row in rows.itertuples():
        whole, copy = "yes" if row.complete else "no", human(row.arrow_bytes) if row.arrow_bytes else ""
        lines.append(f"{row.Index:<18}{human(row.download_bytes):>10}{copy:>12}  {whole:<6} {row.labs}")
    total = human(rows.download_bytes.sum() + rows.arrow_bytes.sum())
    return "\n".join([*lines, f"{total} in all; `make cache CLEAR=<name>` deletes one."])


if __name__ == "__main__":
    sys.exit(main())
