"""What the Makefile calls: `python -m shared.notebooks run|render|solve --help`."""

import os
import sys
from pathlib import Path

from shared import files
from shared.errors import BadInput
from shared.notebooks import commands
from shared.notebooks.pages import index, render, table
from shared.notebooks.run import Run, execute_apart
from shared.notebooks.source import check_scale, labs, solve


def run(lab: str | None = None, scale: str = "tiny") -> list[Run]:
    """Execute solved labs (all, or one), each in a process of its own, and render them to build/html."""
    check_scale(scale)
    chosen = [lab] if lab else list(labs())
    for name in chosen:
        solve(name)  # a damaged notebook is said before anything runs
    runs = []
    for name in chosen:
        print(f"lab {name} at scale {scale} …", flush=True)
        runs.append(execute_apart(name, scale))
        render(runs[-1])
    index(runs)
    return runs


@commands.program("Stopped: the lab that was running has left no page; earlier pages stay.")
def main(arguments: list[str] | None = None) -> int:
    """`run` and `render` execute solved labs into build/; `solve` writes one solved, unexecuted notebook."""
    parser = commands.Parser(main.__doc__, prog="python -m shared.notebooks")
    parser.add_argument("command", choices=("run", "render", "solve"))
    parser.add_argument("--lab", help="one lab, such as 2.4.1 (default: all)")
    parser.add_argument("--scale", default="tiny", help="tiny or full")
    parser.add_argument("--out", type=Path, help="solve: where to write the notebook")
    options = parser.parse_args(arguments)
    if options.command == "solve":
        import nbformat

        if not options.lab or not options.out:
            raise BadInput("`solve` needs --lab, such as 2.4.1, and --out, the notebook to write.")
        with files.replacing(options.out) as part:
            nbformat.write(solve(options.lab), part)
        return 0
    runs = run(options.lab, options.scale)
    if options.command == "run":
        print(table(runs))
    else:
        print(f"Open {os.path.relpath(files.BUILD / 'html' / 'index.html')} in a browser.")
    good = all(r.passed == r.checks and not r.error for r in runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
