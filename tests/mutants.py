"""Mutants of the course's own answers: each with one operator, constant, argument, index or statement changed.

    python tests/mutants.py 2.4.1 decode_roofline

prints those that the check of an exercise lets pass. A check that tests the idea refuses nearly all of those that
change a result.
"""

import ast
import copy
import sys
from collections.abc import Iterator
from typing import NamedTuple

from shared import checks, notebooks
from shared.notebooks import notice

OTHER = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div, ast.Add),
    ast.Div: (ast.Mult, ast.FloorDiv),
    ast.FloorDiv: (ast.Div, ast.Mult),
    ast.Mod: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.GtE),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}
SEEDS = range(1, 6)  # of further cases, on which a mutant that passed may still differ


class Mutant(NamedTuple):
    line: int  # of the answers' file
    was: str
    now: str
    source: ast.Module


def mutants(lab: str, name: str) -> Iterator[Mutant]:
    """Every answer that differs from the course's own at one place."""
    path = notebooks.solutions_path(lab)
    module = ast.parse(path.read_text(encoding="utf-8"))
    function = next(part for part in module.body if isinstance(part, ast.FunctionDef) and part.name == name)
    for number, node in enumerate(ast.walk(function)):
        for change in _changes(node, function):
            other = copy.deepcopy(module)
            twin = next(part for part in other.body if isinstance(part, ast.FunctionDef) and part.name == name)
            place = list(ast.walk(twin))[number]
            was = ast.unparse(place)
            now = change(place)
            _replace(twin, place, now)
            line = getattr(node, "lineno", function.lineno)
            yield Mutant(line, was, ast.unparse(now), ast.fix_missing_locations(other))


def _changes(node: ast.AST, function: ast.FunctionDef) -> list:
    """Functions that turn a node into another one."""
    found = []
    if isinstance(node, (ast.BinOp, ast.AugAssign, ast.BoolOp)):
        found += [lambda n, op=op: _with(n, op=op()) for op in OTHER.get(type(node.op), ())]
    if isinstance(node, ast.Compare):
        found += [lambda n, op=op: _with(n, ops=[op(), *n.ops[1:]]) for op in OTHER.get(type(node.ops[0]), ())]
    if isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        found.append(lambda n: n.operand)
    if isinstance(node, ast.Constant):
        found += [lambda n, value=value: ast.Constant(value) for value in _values(node.value)]
    if isinstance(node, ast.IfExp):
        found += [lambda n: n.body, lambda n: n.orelse]
    if isinstance(node, ast.Slice):
        found += [lambda n, part=part: _with(n, **{part: None}) for part in ("lower", "upper") if getattr(node, part)]
    if isinstance(node, ast.Call):
        found += [lambda n, k=k: _with(n, args=n.args[:k] + n.args[k + 1 :]) for k in range(len(node.args))]
        found += [lambda n, k=k: _with(n, keywords=n.keywords[:k] + n.keywords[k + 1 :]) for k in _plain(node)]
        if len(node.args) > 1 and ast.unparse(node.func) not in ("min", "max"):
            found.append(lambda n: _with(n, args=[n.args[1], n.args[0], *n.args[2:]]))
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        defaults = dict(zip([a.arg for a in function.args.args][::-1], function.args.defaults[::-1], strict=False))
        if node.id in defaults:  # an argument that is ignored
            found.append(lambda n: copy.deepcopy(defaults[n.id]))
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.Expr, ast.If, ast.For)) and not _docstring(node):
        found.append(lambda n: ast.Pass())
    return found


def _plain(call: ast.Call) -> list[int]:
    return [k for k, keyword in enumerate(call.keywords) if keyword.arg]


def _docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _values(value: object) -> list:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [2 * value, value / 2]
    return [value + "x"] if isinstance(value, str) and "\n" not in value else []


def _with(node: ast.AST, **fields) -> ast.AST:
    node = copy.deepcopy(node)
    for field, value in fields.items():
        setattr(node, field, value)
    return node


def _replace(root: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for parent in ast.walk(root):
        for field, value in ast.iter_fields(parent):
            if value is old:
                setattr(parent, field, new)
            elif isinstance(value, list):
                setattr(parent, field, [new if part is old else part for part in value])


def passes(check, mutant: Mutant, name: str) -> tuple[bool, bool]:
    """Whether a check lets a mutant pass, and whether it would with further cases too."""
    names = {"__name__": "__main__"}
    try:
        exec(compile(mutant.source, "<mutant>", "exec"), names)
    except Exception:
        return False, False
    accepted = check.judge(names[name]).mark == notice.PASSED
    return accepted, accepted and all(check.judge(names[name], seed).mark == notice.PASSED for seed in SEEDS)


def survivors(check) -> tuple[int, list[str]]:
    """How many mutants of an answer there are, and a line for each that its check lets pass."""
    name, number, found = check.__name__, 0, []
    for mutant in mutants(check.lab, name):
        number += 1
        accepted, always = passes(check, mutant, name)
        if accepted:
            seen = "" if always else "  (refused on further cases)"
            found.append(f"{name}, line {mutant.line}: {mutant.was}  ->  {mutant.now}{seen}")
    return number, found


if __name__ == "__main__":
    import importlib

    lab, *wanted = sys.argv[1:]
    module = importlib.import_module(f"{checks.__name__}.lab_{lab.replace('.', '_')}")
    for name, check in vars(module).items():
        if hasattr(check, "judge") and (not wanted or name in wanted):
            number, found = survivors(check)
            print(f"{name}: {number - len(found)} of {number} refused", *found, sep="\n  ", flush=True)
