"""What the Makefile calls: `python -m shared.notebooks run|render|site|solve --help`."""

import os
import sys
from pathlib import Path

from shared import files
from shared.errors import BadInput
from shared.notebooks import commands, pages, record
from shared.notebooks.record import Run
from shared.notebooks.run import EXECUTED, execute_apart
from shared.notebooks.source import check_scale, labs, path_of, solve


def chosen(lab: str | None) -> list[str]:
    """The labs that a command is about: one, or all. A damaged notebook is said before anything runs."""
    names = [lab] if lab else list(labs())
    for name in names:
        solve(name)
    return names


def run(lab: str | None = None, scale: str = "tiny") -> list[Run]:
    """Execute solved labs (all, or one), each in a process of its own, into build/executed."""
    check_scale(scale)
    runs = []
    for name in chosen(lab):
        print(f"lab {name} at scale {scale} …", flush=True)
        runs.append(execute_apart(name, scale))
    return runs


def kept_at(lab: str) -> Path:
    """Where the last run of a lab left its notebook."""
    return EXECUTED / path_of(lab).name


def runs_for_pages(lab: str | None, scale: str) -> list[Run]:
    """The runs that pages show: what was executed before, of these very sources, is taken; the rest is executed now.

    lab: where one is named, the pages of the others show what was executed last, and are left out where nothing was.
    """
    check_scale(scale)
    now, runs = chosen(lab), []
    for name in labs():
        kept = record.of(kept_at(name))
        if name in now and not (kept and kept.good and kept.sources == record.sources(solve(name), {"SCALE": scale})):
            kept, *_ = run(name, scale)
        elif name in now:
            print(f"lab {name}: executed before, on {kept.date}, from these sources", flush=True)
        runs.append(kept)
    return [kept for kept in runs if kept]


@commands.program("Stopped: the lab that was running has left no outputs; earlier outputs and pages stay.")
def main(arguments: list[str] | None = None) -> int:
    """`run` executes solved labs into build/; `render` makes pages of them, `site` pages of the unsolved course.

    `solve` writes one solved, unexecuted notebook.
    """
    parser = commands.Parser(main.__doc__, prog="python -m shared.notebooks")
    parser.add_argument("command", choices=("run", "render", "site", "solve"))
    parser.add_argument("--lab", help="one lab, such as 2.4.1 (default: all)")
    parser.add_argument("--scale", default="tiny", help="tiny or full")
    parser.add_argument("--style", default=pages.OPEN, help="render: answers open, or collapsed in folds")
    parser.add_argument("--out", type=Path, help="solve: where to write the notebook")
    options = parser.parse_args(arguments)
    if options.command == "solve":
        import nbformat

        if not options.lab or not options.out:
            raise BadInput("`solve` needs --lab, such as 2.4.1, and --out, the notebook to write.")
        with files.replacing(options.out) as part:
            nbformat.write(solve(options.lab), part)
        return 0
    if options.command == "run":
        runs = run(options.lab, options.scale)
        print(pages.table(runs))
    else:
        style = pages.UNSOLVED if options.command == "site" else options.style
        pages.check(style)
        runs = runs_for_pages(options.lab, options.scale)
        front = pages.build(runs, style)
        print(f"Open {os.path.relpath(front)} in a browser.")
    return 0 if all(run.good for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
