"""Change the ledger's code in one place at a time, and see whether its tests notice.

`python -m benchmarks.mutants --count 100`, or a part of `make prove`. A mutant that no test notices is printed with its
place: either a test is missing there, or the change makes no difference.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("benchmarks", "budgets", "graphs", "mesh", "nodes", "tests", "pyproject.toml")
LIMIT_S: Final = 90.0  # a mutant that hangs is noticed too
LEAST_SHARE: Final = 0.85
LEDGER: Final = (
    *("account", "address", "archive", "audit", "durable", "entry", "lane", "ledger", "memory", "open"),
    *("operation", "outcome", "period", "sheet", "sqlite", "sqlite_file", "sqlite_schema", "sweeper"),
    *("clerk", "directory", "keys", "limits", "payer", "projection", "register", "sqlite_register", "tenants"),
    "turnstile",
)
TESTS: Final = (
    *("ledger_rules", "ledger_audit", "ledger_lane", "ledger_model", "ledger_faults", "ledger_http"),
    *("tenants_rules", "tenants_register"),
)
SKIPPED: Final = "not postgres and not Postgres and not server and not cluster"

_COMPARED: Final[dict[type[ast.cmpop], type[ast.cmpop]]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_REACHED: Final[dict[type[ast.operator], type[ast.operator]]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr, ast.RShift: ast.LShift, ast.LShift: ast.RShift,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change. `number` counts the places of a file at which something can be changed."""

    file: Path
    number: int
    line: int
    what: str


@dataclass(slots=True)
class Tally:
    """How many mutants were noticed, and which were not."""

    killed: int = 0
    alive: list[Mutant] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.killed / max(1, self.killed + len(self.alive))

    def line(self) -> str:
        tried = self.killed + len(self.alive)
        return f"mutants: {self.killed} of {tried} changes to the ledger were noticed ({self.share:.0%})"


def mutants(seed: int, count: int, tell: Callable[[str], None]) -> Tally:
    """Try so many changes, chosen by the seed."""
    places = [place for name in LEDGER for place in places_of(ROOT / "budgets" / f"{name}.py")]
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="mesh-mutants-") as name:
        folder = Path(name)
        _copy(folder)
        if not passes(folder):
            raise RuntimeError("the ledger's tests fail without any change")
        for mutant in chosen:
            target = folder / mutant.file.relative_to(ROOT)
            before = target.read_text()
            target.write_text(mutated(before, mutant.number))
            if passes(folder):
                tally.alive.append(mutant)
                tell(f"  not noticed: {mutant.file.relative_to(ROOT)}:{mutant.line}: {mutant.what}")
            else:
                tally.killed += 1
            target.write_text(before)
    return tally


def passes(folder: Path) -> bool:
    """Whether the ledger's tests pass on the tree in this folder."""
    files = [f"tests/test_{name}.py" for name in TESTS]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        *files,
        "-k",
        SKIPPED,
        "-p",
        "no:cacheprovider",
        "--timeout=30",
    ]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def places_of(file: Path) -> Iterator[Mutant]:
    """Everything in a file that can be changed."""
    for number, (node, what) in enumerate(_places(ast.parse(file.read_text()))):
        yield Mutant(file, number, getattr(node, "lineno", 0), what)


def mutated(source: str, number: int) -> str:
    """The source with its place of this number changed."""
    tree = ast.parse(source)
    node, _ = list(_places(tree))[number]
    _change(node)
    return ast.unparse(ast.fix_missing_locations(tree))


def _places(tree: ast.AST) -> Iterator[tuple[ast.AST, str]]:
    for node in _code(tree):
        match node:
            case ast.Compare(ops=[op]) if type(op) in _COMPARED:
                yield node, f"another comparison: {ast.unparse(node)}"
            case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _REACHED:
                yield node, f"another operator: {ast.unparse(node)}"
            case ast.BoolOp():
                yield node, f"and for or: {ast.unparse(node)}"
            case ast.UnaryOp(op=ast.Not()):
                yield node, f"no not: {ast.unparse(node)}"
            case ast.Constant(value=bool() | int()):
                yield node, f"another constant: {node.value!r}"
            case ast.Return() | ast.Expr():
                yield from _left_out(node)
            case _:
                pass


def _left_out(node: ast.Return | ast.Expr) -> Iterator[tuple[ast.AST, str]]:
    if isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield node, f"returns nothing: {ast.unparse(node)}"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        yield node, f"left out: {ast.unparse(node)}"


def _change(node: ast.AST) -> None:
    match node:
        case ast.Compare(ops=[op]):
            node.ops = [_COMPARED[type(op)]()]
        case ast.BinOp(op=op) | ast.AugAssign(op=op):
            node.op = _REACHED[type(op)]()
        case ast.BoolOp(op=joint):
            node.op = ast.Or() if isinstance(joint, ast.And) else ast.And()
        case ast.UnaryOp():
            node.operand = ast.UnaryOp(ast.Not(), copy.deepcopy(node.operand))
        case ast.Constant(value=int() as value):
            node.value = (not value) if isinstance(value, bool) else value + 1
        case ast.Return() | ast.Expr():
            node.value = ast.Constant(None)
        case _:
            raise TypeError(f"{type(node).__name__} is no place for a change")


def _code(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: no annotations, decorators, protocols, log lines or texts."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.ClassDef) and any(ast.unparse(base) == "Protocol" for base in child.bases):
            continue
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield from _code(ast.Expr(child.value))
            continue
        if isinstance(child, ast.arg | ast.JoinedStr | ast.ImportFrom | ast.Import | ast.Raise) or _is_logging(child):
            continue
        yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _code(ast.Module(child.body, []))
        else:
            yield from _code(child)


def _is_logging(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).startswith(("log.", "warnings."))


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _copy(folder: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, print, and say by the exit code whether enough was noticed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__)
    parser.add_argument("--count", type=int, default=100, help="how many changes (default 100)")
    parser.add_argument("--seed", type=int, default=1, help="which ones (default 1)")
    asked = parser.parse_args(arguments)
    tally = mutants(asked.seed, asked.count, lambda text: print(text, flush=True))
    print(tally.line())
    return 0 if tally.share >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
