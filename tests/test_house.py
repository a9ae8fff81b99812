"""The package is a house that a stranger can find their way in: few rooms, a map of them, no circles, no back doors."""

import ast
import re
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import shared
from shared import files, notebooks

MODULES = {
    ".".join(path.relative_to(files.ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((files.ROOT / "shared").rglob("*.py"))
}
ROOMS = {name.split(".")[1] for name in MODULES if "." in name}
PROGRAMS = sorted((files.ROOT / "scripts").rglob("*.py"))


def imported(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found & set(MODULES) - {"shared"}


IMPORTS = {name: imported(path) - {name} for name, path in MODULES.items()}


def rooms_used(name: str) -> set[str]:
    """The other rooms that a module imports from."""
    return {other.split(".")[1] for other in IMPORTS[name]} - {name.split(".")[1]}


def test_a_stranger_meets_at_most_eighteen_rooms_and_the_map_names_each():
    assert len(ROOMS) <= 18
    assert set(re.findall(r"^    (\w+) {2,}", shared.__doc__, re.MULTILINE)) == ROOMS


def test_no_room_leads_back_to_itself():
    """TopologicalSorter raises CycleError, which names the circle."""
    graph = {room: set() for room in ROOMS}
    for name in MODULES:
        if "." in name:
            graph[name.split(".")[1]] |= rooms_used(name)
    assert len(list(TopologicalSorter(graph).static_order())) == len(ROOMS)


def test_no_module_leads_back_to_itself():
    """A package is what its modules are imported through, so it stands above them and none of them imports it."""
    graph = {}
    for name, others in IMPORTS.items():
        # `from shared.models import sizes` asks for the module sizes, not for what the package gathers.
        parents = {other.rpartition(".")[0] for other in others}
        graph[name] = {other for other in others if other not in parents or other == "shared"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(MODULES)


def test_what_lies_underneath_imports_only_what_the_map_has_before_it():
    below = re.findall(r"^    (\w+) {2,}", shared.__doc__.split("What lies underneath")[1], re.MULTILINE)
    for place, room in enumerate(below):
        used = set().union(*(rooms_used(name) for name in MODULES if name.startswith(f"shared.{room}")))
        assert used <= set(below[:place]), f"{room} imports {used - set(below[:place])}"


def test_no_module_uses_another_ones_private_names():
    found = []
    for path in [*MODULES.values(), *PROGRAMS]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        modules = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shared"):
                modules |= {alias.asname or alias.name for alias in node.names}
                found += [f"{path.name}: {alias.name}" for alias in node.names if alias.name.startswith("_")]
        for node in ast.walk(tree):
            private = isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__")
            if private and isinstance(node.value, ast.Name) and node.value.id in modules:
                found.append(f"{path.name}: {node.value.id}.{node.attr}")
    assert found == []


def test_the_package_does_not_import_labs_or_programs():
    programs = {path.stem for path in PROGRAMS if path.parent.name == "scripts"} | {"labs", "rehearsal"}
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            assert not {module.split(".")[0] for module in modules} & programs, name


def test_data_holds_no_programs():
    assert list((files.ROOT / "data").rglob("*.py")) == []


def test_the_hub_needs_no_torch():
    for name, path in MODULES.items():
        if name.startswith("shared.hub"):
            assert not re.search(r"import (torch|transformers)|from (torch|transformers)", path.read_text()), name


# ---- what a student's set-up has -----------------------------------------------------------------------------------

OPTIONAL = {"torchao", "causal_conv1d", "mamba_ssm"}  # asked for only where they are installed


def plain(requirement: str) -> str:
    """The name of a distribution without versions and extras, as pip compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def installed_for_students() -> set[str]:
    """What the course's dependencies bring, without the extras that tests and builds take."""
    project = tomllib.loads((files.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    ahead, found = {plain(dependency) for dependency in project["dependencies"]}, set()
    while ahead:
        name = ahead.pop()
        found.add(name)
        requirements = metadata.requires(name) or [] if any(metadata.distributions(name=name)) else []
        ahead |= {plain(r) for r in requirements if "extra ==" not in r} - found
    return found


def packages(tree: ast.AST) -> set[str]:
    """The packages that a program imports, wherever in it the import stands."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"shared"} - OPTIONAL


def test_what_labs_and_the_package_import_is_in_a_students_set_up():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()]
    for lab in notebooks.labs():
        trees += [ast.parse(cell.source) for cell in notebooks.solve(lab).cells if cell.cell_type == "code"]
    imports = set().union(*map(packages, trees))
    have, sources = installed_for_students(), metadata.packages_distributions()
    assert {name for name in imports if not have & {plain(source) for source in sources[name]}} == set()
    assert {"torch", "numpy", "scipy"} <= imports
