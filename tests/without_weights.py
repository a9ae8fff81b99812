"""Run every solved lab at scale full with nothing fetched, and print as JSON what each of its cells showed.

A lab is run cell by cell in a fork of this process, which has imported what takes seconds to import.
"""

import json
import multiprocessing
import sys

from IPython.utils.capture import capture_output

from shared import files, notebooks

sys.path.insert(0, str(files.ROOT / "scripts"))

from rehearsal import warm
from rehearse import NUMBERS


def cells(lab: str) -> list[dict]:
    """Each code cell of a lab: its id, tags and number, its text, its outputs' metadata, and an error if it has one."""
    shell = warm.shell()
    notebook = notebooks.solve(lab)
    notebooks.change_settings(notebook, "full", NUMBERS[lab])
    found = []
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        source = cell.source + '\nSCALE = "full"' * ("parameters" in tags)
        with capture_output() as came:
            result = shell.run_cell(source, store_history=True)
        text = came.stdout + "".join(output.data.get("text/plain", "") for output in came.outputs)
        notes = [output.metadata for output in came.outputs if output.metadata]
        error = result.error_before_exec or result.error_in_exec
        about = {"id": cell.id, "tags": tags, "number": result.execution_count, "text": text}
        found.append(about | {"notes": notes, "error": repr(error) if error else ""})
    return found


if __name__ == "__main__":
    warm.prepare()
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        print(json.dumps(dict(zip(notebooks.labs(), pool.map(cells, notebooks.labs(), chunksize=1), strict=True))))
