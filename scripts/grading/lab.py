"""A submission beside the official lab: which cells an exercise consists of, and what they read."""

import re
from dataclasses import dataclass
from pathlib import Path

from shared import notebooks
from shared.errors import BadInput
from shared.notebooks import absent, source


def lab_of(notebook) -> str:
    """The lab whose exercises a notebook holds, by their ids and by what its cells define."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    ids = {cell.get("id") for cell in notebook.cells}
    found = {}
    for lab in notebooks.labs():
        known = notebooks.answers(lab)
        defined = [each for each in known if re.search(f"^{source.defines(each)}", text, re.MULTILINE)]
        found[lab] = len(ids & set(known)) + len(defined)
    lab = max(found, key=found.__getitem__)
    if not found[lab]:
        raise BadInput("It holds no exercise of the course.")
    return lab


@dataclass(frozen=True)
class Needed:
    """What an exercise needs to run: ids of cells of the official lab, then sources of the student's, in order."""

    official: list[str]
    sources: list[str]


class Submission:
    """A student's notebook of a lab. Raises BadInput where the file is no notebook of the course."""

    def __init__(self, path: Path):
        self.notebook = source.load(path)
        self.lab = lab_of(self.notebook)
        source.identify(self.notebook, self.lab)
        self.official = notebooks.read(self.lab)
        self.answers = notebooks.answers(self.lab)
        self.code = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        graded = {*self.answers, *map(source.check_of, self.answers)}
        self.lab_cells = [cell for cell in absent.cells_of(self.official) if cell.id not in graded]
        self.other_cells = [cell for cell in absent.cells_of(self.notebook) if cell.id not in graded]
        self.places = {cell.id: place for place, cell in enumerate(self.official.cells)}

    def cells(self, exercise: str) -> list:
        """The cells that define an exercise's function, down to its check: the last counts, as where a lab is run."""
        defines = re.compile(f"^{source.defines(exercise)}", re.MULTILINE).search
        check = source.check_of(exercise)
        end = next((place for place, cell in enumerate(self.code) if cell.id == check), len(self.code))
        found = [place for place, cell in enumerate(self.code) if cell.id == exercise or defines(cell.source)]
        return [self.code[place] for place in found if place < end] or [self.code[place] for place in found[:1]]

    def note(self, exercise: str) -> str:
        """What is odd about an exercise's cells."""
        said = []
        if (number := len(self.cells(exercise))) > 1:
            said.append(f"{number} cells define {source.name_of(exercise)}; the last before the check counts.")
        texts = [
            re.sub(r"\s", "", cell.source)
            for notebook in (self.official, self.notebook)
            for cell in notebook.cells
            if cell.id == source.check_of(exercise)
        ]
        if len(texts) == 1:
            said.append("The check's cell is not in the notebook.")
        elif texts[0] != texts[-1]:
            said.append("The check's cell was edited; the official one has judged.")
        return " ".join(said)

    def needed(self, exercise: str, solved: set[str]) -> Needed:
        """The cells above an exercise from which it reads names, directly or through each other, and its own.

        A function of an earlier exercise is the student's where it is among the `solved`, and the course's otherwise.
        A name that the official lab does not have is taken from the cell of the student that binds it.
        """
        official, mine = set(), {cell.id for cell in self.cells(exercise)}
        earlier = {source.name_of(each): each for each in self.answers if self.places[each] < self.places[exercise]}
        ahead = [name for cell in self.cells(exercise) for name in reads(cell.source)]
        seen = {source.name_of(exercise)}
        while ahead:
            name = ahead.pop()
            if name in seen:
                continue
            seen.add(name)
            above = [c for c in self.lab_cells if name in c.binds and self.places[c.id] < self.places[exercise]]
            if name in earlier:
                cells = self.cells(earlier[name]) if earlier[name] in solved else []
                mine |= {cell.id for cell in cells}
                ahead += [read for cell in cells for read in reads(cell.source)]
            elif above:
                official |= {cell.id for cell in above}
                ahead += [read for cell in above for read in cell.reads]
            elif theirs := [cell for cell in self.other_cells if name in cell.binds]:
                mine |= {cell.id for cell in theirs}
                ahead += [read for cell in theirs for read in cell.reads]
        in_order = [cell.id for cell in self.official.cells if cell.id in official]
        return Needed(in_order, [cell.source for cell in self.code if cell.id in mine])


def reads(text: str) -> list[str]:
    """The names that a cell reads; none of one that is no Python."""
    import nbformat

    cell = nbformat.v4.new_code_cell(text)
    return [name for known in absent.cells_of(nbformat.v4.new_notebook(cells=[cell])) for name in known.reads]
