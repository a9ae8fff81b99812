"""Go on where something cannot be had: what needs it is not run and says so, everything else runs.

    absent.skip_cells("2.4.1")   # once, in one of a notebook's first cells

A cell that raises Missing, or another of `NOT_HERE`, shows its one sentence and does not stop the notebook. The names
that it would have bound are absent from then on; so are those of each later cell that reads an absent one. Whatever
binds a name anew, such as the same cell after a download, makes it present again.

A cell that reads a name of a section that a student has skipped says which sections to run first.
"""

import ast
import dis
import re
from dataclasses import dataclass
from types import CodeType

from IPython import get_ipython
from IPython.display import display

from shared.errors import BadInput, DamagedCheckpoint, DiskFull, Missing, NotEnoughMemory
from shared.notebooks import source
from shared.notebooks.notice import PLAIN, RED

# What a download, a repair or a larger machine gives. Not their subclasses: after guard.MemoryRanLow nothing may go on.
NOT_HERE = (Missing, DiskFull, NotEnoughMemory, DamagedCheckpoint)


def skip_cells(lab: str | None = None) -> None:
    """From the next cell on, in a notebook; a second call changes nothing. In a script nothing changes: it stops.

    lab: the number of the notebook, such as "2.4.1", by which its sections are found.
    """
    shell = get_ipython()
    if shell and not any(isinstance(transformer, _Notebook) for transformer in shell.ast_transformers):
        notebook = _Notebook(shell, lab)
        shell.ast_transformers.append(notebook)
        shell.set_custom_exc((*NOT_HERE, NameError), notebook.failed)
        shell.events.register("post_run_cell", notebook.went_on)


@dataclass(frozen=True)
class _Cell:
    """A cell as it is about to run. reads: before it binds them itself, in order. binds: what it leaves behind."""

    code: str
    reads: tuple[str, ...] = ()
    binds: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Absent:
    """A name that is not there. code: of the cell that would have bound it. why: number of the cell that says why."""

    code: str
    why: int
    before: dict[str, object]  # the name with the value that its cell goes on from, if it does


class _Notebook:
    """What is absent in a notebook. IPython asks `visit` before a cell runs, `failed` and `went_on` after it."""

    def __init__(self, shell, lab: str | None):
        self.names = shell.user_ns
        self.lab = lab
        self.absent: dict[str, _Absent] = {}
        self.said: dict[str, tuple[str, int]] = {}  # sentence -> code and number of the cell below which it stands
        self.cell = _Cell("")
        self.refused = False
        self.error: BaseException | None = None

    def visit(self, tree: ast.Module) -> ast.Module:
        """The cell as it is, or in its place the error that reading an absent name is."""
        try:
            reads, binds = reads_and_binds(compile(tree, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
        except SyntaxError:
            return tree  # IPython is about to say so
        self.cell = _Cell(ast.dump(tree), tuple(reads), frozenset(binds))
        self.absent = {name: its for name, its in self.absent.items() if name not in self.names}
        for name in [name for name, its in self.absent.items() if its.code == self.cell.code]:  # it tries again
            self.names.update(self.absent.pop(name).before)
        needed = next((name for name in reads if name in self.absent), None)
        self.refused = needed is not None
        if self.refused:
            tree.body = ast.parse(f"raise NameError({needed!r}, name={needed!r})").body
        return tree

    def failed(self, shell, kind, error, frames, tb_offset=None) -> None:
        """Show the one sentence of an error that the notebook survives; any other error as IPython does."""
        if kind in NOT_HERE:
            said = f"{kind.__name__}: {error}"
            code, why = self.said.get(said, (self.cell.code, None))
            if code == self.cell.code:  # the first cell that says it, perhaps once more
                why = shell.execution_count - 1
                self.said[said] = code, why
                _show(f"{RED}{said}{PLAIN}", missing=said)
            else:
                _show(f"Not run to its end: it needs what is missing below cell [{why}].", missing=said)
        elif kind is NameError and error.name in self.absent:
            why = self.absent[error.name].why
            run = "Not run" if self.refused else "Not run to its end"
            said = f"{run}: it needs `{error.name}`, and why that is missing stands below cell [{why}]."
            _show(said, needs=error.name)
        else:
            remedy = self._remedy(error.name) if kind is NameError and _ends_in(frames, self.names) else ""
            if remedy:  # an error all the same: a run of several cells stops here
                _show(f"{RED}`{error.name}` is not there yet. {remedy}{PLAIN}", needs=error.name)
            else:
                shell.showtraceback((kind, error, frames), running_compiled_code=True)
            return
        self.error = error
        for name in self.cell.binds:
            if name in self.names or name not in self.absent:
                before = {name: self.names[name]} if name in self.names and name in self.cell.reads else {}
                self.names.pop(name, None)
                self.absent[name] = _Absent(self.cell.code, why, before)

    def _remedy(self, name: str) -> str:
        """The sections to run first: the one that makes a name, those that make what else the section of the cell at
        work reads, and those that make what these read in turn; as far as it is not there. "" if none makes the name.

        Where the file is damaged, what is wrong with it is why the name of an exercise is not there.
        """
        try:
            cells = cells_of(source.solve(self.lab)) if self.lab else []
        except ValueError as problem:
            its_exercise = name in map(source.name_of, source.answers(self.lab))
            return str(problem) if its_exercise and isinstance(problem, BadInput) else ""
        makers = {made: cell.section for cell in reversed(cells) for made in cell.binds}
        if name not in makers:
            return ""

        def absent(section: str | None) -> set[str]:
            return {read for cell in cells if cell.section == section for read in cell.reads} - set(self.names)

        here = next((cell.section for cell in cells if cell.code == self.cell.code), None)
        needed, names = set(), {name} | {read for read in absent(here) if makers.get(read) != here}
        while names:
            section = makers.get(names.pop())
            if section is not None and section not in needed:
                needed.add(section)
                names |= absent(section)
        first = [section for section in dict.fromkeys(cell.section for cell in cells) if section in needed]
        return f"Run first: {', '.join(first)}."

    def went_on(self, result) -> None:
        """Take the error back that `failed` has shown: a notebook stops at a cell that has one."""
        if self.error is not None:
            result.error_in_exec = None
            self.error = None  # and with it the frames, which hold what the cell had loaded


@dataclass(frozen=True)
class LabCell:
    """A code cell of a lab. section: as a sentence names it. code, reads, binds: as in `_Cell`."""

    id: str
    section: str
    code: str
    reads: tuple[str, ...]
    binds: frozenset[str]


def cells_of(notebook) -> list[LabCell]:
    """The code cells of a lab, in order, with the names that pass between them. One that is no Python is left out."""
    section, cells = "the cells above section 1", []
    for cell in notebook.cells:
        if cell.cell_type == "markdown" and (heading := re.match(r"## (\d+) · (.*)", cell.source)):
            section = f"section {heading[1]} ({heading[2]})"
        elif cell.cell_type == "code":
            try:
                tree = compile(cell.source, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST)
                reads, binds = reads_and_binds(compile(tree, "<cell>", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT))
            except (SyntaxError, ValueError, RecursionError, MemoryError):  # magics; what the compiler gives up on
                continue
            cells.append(LabCell(cell.id, section, ast.dump(tree), tuple(reads), frozenset(binds)))
    return cells


def _ends_in(frames, names: dict) -> bool:
    """Whether an error was raised by the notebook's own code, not inside a module."""
    while frames.tb_next is not None:
        frames = frames.tb_next
    return frames.tb_frame.f_globals is names


def _show(said: str, **metadata: str) -> None:
    """Print a line as an output that a program can tell by its metadata."""
    display({"text/plain": said}, raw=True, metadata=metadata)


def reads_and_binds(code: CodeType, top: bool = True) -> tuple[list[str], set[str]]:
    """The globals that compiled code reads before it binds them, functions' bodies included, and those it leaves bound.

    The compiler has sorted out the scopes: only globals have instructions that end in NAME (at the top of a cell and in
    the body of a class) or in GLOBAL (in functions).
    """
    reads, bound, left = [], set(), set()
    for instruction in dis.get_instructions(code):
        does, _, scope = instruction.opname.partition("_")
        name = instruction.argval
        if scope not in ("NAME", "GLOBAL") or does not in ("LOAD", "STORE", "DELETE"):
            continue
        if does == "STORE":
            bound.add(name)
            if top or scope == "GLOBAL":
                left.add(name)
        elif name not in bound:
            reads.append(name)
        if does == "DELETE":
            left.discard(name)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            later, stored = reads_and_binds(inner, top=False)
            reads += [name for name in later if not (top and name in bound)]
            left |= stored
    return reads, left - {"_"}  # which IPython binds itself
