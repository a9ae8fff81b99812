"""The package is a house that a stranger can find their way in: few rooms, a map of them, no circles, no back doors."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib import metadata
from pathlib import Path

import pytest

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


def test_tests_stand_where_what_they_test_stands():
    """tests/models/ is for shared/models/, tests/test_data.py for shared/data.py; only this file is for the whole."""
    tests = [path.relative_to(files.ROOT / "tests") for path in (files.ROOT / "tests").rglob("test_*.py")]
    folders = {name for name in ROOMS if (files.ROOT / "shared" / name).is_dir()}
    assert {path.parts[0] for path in tests if len(path.parts) == 2} == folders | {"labs", "scripts"}
    assert {path.stem.removeprefix("test_") for path in tests if len(path.parts) == 1} <= ROOMS - folders | {"house"}
    assert max(len(path.parts) for path in tests) == 2


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_labs_and_the_package_import_is_in_a_students_set_up():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()]
    for lab in notebooks.labs():
        trees += [ast.parse(cell.source) for cell in notebooks.solve(lab).cells if cell.cell_type == "code"]
    imports = set().union(*map(packages, trees))
    have, sources = installed_for_students(), metadata.packages_distributions()
    assert {name for name in imports if not have & {plain(source) for source in sources[name]}} == set()
    assert {"torch", "numpy", "scipy"} <= imports


# ---- nothing changes the process without saying so -----------------------------------------------------------------

GLOBAL = re.compile(  # a call that changes what belongs to the whole process
    r"os\.(putenv|unsetenv|chdir|umask|nice|environ\.(update|setdefault|pop|clear))"
    r"|(warnings\.)?(simplefilter|filterwarnings)|.*\.(setLevel|captureWarnings|set_verbosity\w*)|logging\.(disable|basicConfig)"
    r"|.*(disable|enable)_progress_bars?|signal\.(signal|set_wakeup_fd|setitimer|alarm)|atexit\.register|faulthandler\.\w+"
    r"|(threading\.)?Thread|sys\.(settrace|setprofile|setrecursionlimit|path\.\w+)|resource\.setrlimit|gc\.(disable|freeze)"
    r"|torch\.(set_\w+|manual_seed|use_deterministic_algorithms|(\w+\.)+(set_\w+|manual_seed\w*|enable_\w+))"
    r"|(random|np\.random|numpy\.random)\.seed|(transformers\.)?set_seed|locale\.setlocale|socket\.setdefaulttimeout"
    r"|(matplotlib|plt)\.(use|rc|rcParams\.\w+|style\.use)|pd\.set_option|.*\.events\.register|.*\.set_custom_exc"
    r"|Auto\w+\.register|register_\w+|multiprocessing\.set_start_method|setattr|delattr|ctypes\.CDLL"
)
KEPT_OF = re.compile(r"(os|sys|torch|warnings|logging|signal|matplotlib|plt|pd|transformers|IPython|builtins)\b.*")
UNDOES = {
    "catch_warnings": ("simplefilter", "filterwarnings"),
    "fork_rng": ("manual_seed",),
}  # a `with`, and what it undoes
# Where the whole process is changed, and why that is sound: it is undone in the same function, or what the function is
# for, which its name or the first lines of its docstring say.
SAID = {
    "machine/process.py environment": "undone",
    "machine/process.py silent": "undone",
    "machine/process.py denormals_as_zero": "undone",
    "machine/process.py end_with": "what it is for",
    "machine/guard.py cap": "what it is for",
    "machine/guard.py watch": "what it is for",
    "machine/graphs.py _strictly": "undone",
    "machine/meters.py Host.settle": "gives freed memory back to the system, and changes no setting",
    "machine/kernels.py by_device": "what it is for",
    "machine/kernels.py _by_device": "what `by_device` is for",
    "memory.py Tracker.__init__": "a thread that ends with the block, as its `_hear` undoes itself in `_end`",
    "memory.py Tracker._end": "undoes `_hear`",
    "memory.py Tracker._hear": "until `_end`, as the docstring of `track` says",
    "results.py kept": "the random numbers that follow are those of a new measurement, said in its docstring",
    "models/deepseek.py register": "what it is for",
    "models/loading.py _quiet": "undone",
    "kits/finetune.py base": "said in its docstring",
    "kits/finetune.py freed_at_once": "undone",
    "kits/lab.py start": "said in its docstring",
    "kits/plans.py Clock.start": "what it is for",
    "notebooks/absent.py skip_cells": "what it is for",
    "notebooks/launch.py worker": "what a process of its own does first",
    "notebooks/launch.py lab_worker": "what a process of its own does first",
    "notebooks/run.py execute_apart": "a second Ctrl-C, while the first one ends the program",
    "notebooks/run.py _worker": "what a process of its own does first",
    "checks/watch.py Answer.__call__": "puts back what an answer has changed",
    "checks/watch.py bounded": "undone",
    "checks/watch.py _stop": "undone by `bounded`",
    "checks/watch.py interrupts": "undone",
    "checks/lab_2_4_2.py _lines": "undone",
}


def changes(node: ast.AST, place: str = "", undone: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """(function or method, what) for each change of the whole process in a module that no `with` around it undoes."""
    if isinstance(node, ast.ClassDef):
        place = f"{node.name}."
    elif isinstance(node, ast.FunctionDef) and (not place or place.endswith(".")):  # one inside another is part of it
        place += node.name
    elif isinstance(node, ast.With):
        calls = [item.context_expr.func for item in node.items if isinstance(item.context_expr, ast.Call)]
        for call in calls:
            undone += UNDOES.get(ast.unparse(call).split(".")[-1], ())
    found = []
    if isinstance(node, ast.Call) and GLOBAL.fullmatch(name := ast.unparse(node.func)):
        of_its_own = name == "setattr" and ast.unparse(node.args[0]) == "self"
        if not of_its_own and name.split(".")[-1] not in undone:
            found.append((place, name))
    targets = [node.target] if isinstance(node, ast.AugAssign) else getattr(node, "targets", [])
    for target in targets:
        if isinstance(target, ast.Attribute | ast.Subscript) and KEPT_OF.fullmatch(ast.unparse(target)):
            found.append((place, ast.unparse(target)))
    for child in ast.iter_child_nodes(node):
        found += changes(child, place, undone)
    return found


def test_who_changes_the_whole_process_is_known():
    found = {}
    for path in MODULES.values():
        for place, what in changes(ast.parse(path.read_text(encoding="utf-8"))):
            found.setdefault(f"{path.relative_to(files.ROOT / 'shared')} {place}", []).append(what)
    assert {place: what for place, what in found.items() if place not in SAID} == {}
    assert set(SAID) - set(found) == set(), "a place that changes nothing any more"
    # A program is the process: what it sets ends with it. To import one, as its tests do, changes nothing.
    at_import = [path.name for path in PROGRAMS if any(not place for place, _ in changes(ast.parse(path.read_text())))]
    assert at_import == [], "a program that changes its process when it is imported"


@pytest.mark.parametrize(
    "line",
    [
        "os.environ['X'] = '1'",
        "del os.environ['X']",
        "os.environ.setdefault('X', '1')",
        "warnings.filterwarnings('ignore')",
        "with torch.random.fork_rng(): warnings.simplefilter('ignore')",
        "logging.getLogger('torch').setLevel(40)",
        "logging.set_verbosity_error()",
        "signal.signal(signal.SIGINT, f)",
        "atexit.register(f)",
        "threading.Thread(target=f).start()",
        "setattr(module, 'name', f)",
        "transformers.models.mamba.scan = f",
        "sys.excepthook = f",
        "torch.set_flush_denormal(True)",
        "torch.set_default_dtype(x)",
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.manual_seed(0)",
        "random.seed(0)",
        "plt.rcParams['font.size'] = 9",
        "plt.rcParams.update(x)",
        "matplotlib.use('agg')",
        "pd.set_option('display.width', 9)",
        "pd.options.display.width = 9",
        "AutoConfig.register('x', X)",
        "shell.events.register('pre_run_cell', f)",
        "os.chdir(x)",
    ],
)
def test_the_search_for_changes_finds_each_kind(line):
    assert changes(ast.parse(line)) and not changes(ast.parse("with warnings.catch_warnings(): simplefilter('ignore')"))


IMPORTS_ALL = """
import importlib, json, logging, os, pkgutil, random, signal, sys, threading, warnings
import shared

def state():
    import matplotlib, numpy, pandas, torch, transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    return {
        "environment": dict(os.environ),
        "filters": list(warnings.filters),
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "levels": {name: logging.getLogger(name).level for name in sorted(logging.root.manager.loggerDict)},
        "threads": threading.active_count(),
        "hooks": (sys.excepthook, sys.stdout, sys.gettrace(), list(sys.path), os.getcwd()),
        "torch": (
            torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(), bool(torch.tensor(1e-45) == 0),
            torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(), torch.initial_seed(),
            torch.get_rng_state().tolist(), torch.backends.cuda.matmul.allow_tf32,
        ),
        "seeds": (random.getstate(), str(numpy.random.get_state())),
        "matplotlib": dict(matplotlib.rcParams),
        "pandas": {name: pandas.get_option(name) for name in ("display.width", "display.max_rows")},
        "transformers": (transformers.utils.logging.get_verbosity(), sorted(CONFIG_MAPPING.keys())),
    }

names = [module.name for module in pkgutil.walk_packages(shared.__path__, "shared.")]
first = json.load(sys.stdin)
for name in first:  # what the package imports of others, which may change what they like
    importlib.import_module(name)
before = state() if first else {}
for name in names:
    importlib.import_module(name)
after = state()
changed = {what: (before[what], after[what]) for what in before if before[what] != after[what]}
inside = {*sys.stdlib_module_names, "shared", "__main__", "__mp_main__"}
others = [name for name, module in sys.modules.items() if module and name.split(".")[0] not in inside]
print(json.dumps([len(names), repr(changed), others]))
"""


def imports_all(first: list[str]) -> tuple[int, str, list[str]]:
    """How many modules a process imports after those in `first`, what that changes, and all modules of others."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS_ALL], cwd=files.ROOT, input=json.dumps(first), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_an_import_of_the_package_changes_nothing_of_the_process():
    *_, others = imports_all([])
    number, changed, _ = imports_all(others)
    assert (number, changed) == (len(MODULES) - 1, "{}")
