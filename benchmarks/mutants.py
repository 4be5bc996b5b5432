"""Change the ledger's code in one place at a time, and see whether its tests notice.

`python -m benchmarks.mutants --count 100`, or a part of `make prove`. A mutant that no test notices is printed with its
place: either a test is missing there, or the change makes no difference. The tests run once unchanged, to learn which
of them run which lines; a mutant is then shown to those that run its lines, the quickest first.
"""

import argparse
import ast
import copy
import json
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.touched import VARIABLE

ROOT: Final = Path(__file__).resolve().parent.parent
COPIED: Final = ("benchmarks", "budgets", "graphs", "mesh", "nodes", "tests", "policies", "docs", "pyproject.toml")
LIMIT_S: Final = 120.0  # a mutant that hangs is noticed too
LEARN_S: Final = 900.0
MOST_FAILING: Final = 3
LEAST_SHARE: Final = 0.85
NO_CODE: Final = frozenset({"__init__", "beside_schema", "store"})  # a docstring, texts, a protocol
LEDGER: Final = tuple(file.stem for file in sorted((ROOT / "budgets").glob("*.py")) if file.stem not in NO_CODE)
TESTS: Final = (
    *("ledger_rules", "ledger_audit", "ledger_lane", "ledger_model", "ledger_faults", "ledger_http"),
    *("tenants_rules", "tenants_register", "tenants_budgets", "throttle", "alerts", "bypass", "pressure", "clamp"),
    *("tenants_http", "tenants_cli", "door", "graph_build", "ledger_parts", "bills", "register"),
)
POSTGRES: Final = "postgres or Postgres or server"
"""What needs a server: shown to changes of its own files only, as a server takes seconds to start."""

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
    last: int = 0  # the last line of what is changed

    @property
    def shown(self) -> str:
        return f"{self.file.relative_to(ROOT)}:{self.line}: {self.what}"

    @property
    def of_server(self) -> bool:
        return self.file.stem.startswith("postgres")


@dataclass(frozen=True, slots=True)
class Learned:
    """Which tests run which lines (`file:line`), and how long each took."""

    lines: Mapping[str, Collection[str]]
    took_s: Mapping[str, float]

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests to show a mutant, the quickest first.

        Of a line that runs at import only, or in processes of their own, all tests that run any line of its file.
        """
        name = mutant.file.name
        found = {test for at in range(mutant.line, mutant.last + 1) for test in self.lines.get(f"{name}:{at}", ())}
        if not found:
            found = {test for line, tests in self.lines.items() if line.startswith(f"{name}:") for test in tests}
        return sorted(found, key=lambda test: self.took_s.get(test, 0.0))


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


def mutants(
    seed: int,
    count: int,
    tell: Callable[[str], None],
    *,
    only: Collection[str] = LEDGER,
    jobs: int = 1,
) -> Tally:
    """Try so many changes, chosen by the seed, of these files of `budgets/`."""
    places = [place for name in LEDGER if name in only for place in places_of(ROOT / "budgets" / f"{name}.py")]
    chosen = random.Random(seed).sample(places, min(count, len(places)))
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="mesh-mutants-") as name:
        trees = [Path(name) / f"tree{number}" for number in range(jobs)]
        for tree in trees:
            _copy(tree)
        learned = {server: _learned(trees[0], server) for server in {one.of_server for one in chosen}}
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for tree in trees:
            free.put(tree)

        def noticed(mutant: Mutant) -> bool:
            tree = free.get()
            try:
                return _noticed(tree, mutant, learned[mutant.of_server].tests_of(mutant))
            finally:
                free.put(tree)

        with ThreadPoolExecutor(jobs) as threads:
            for mutant, killed in zip(chosen, threads.map(noticed, chosen), strict=True):
                if killed:
                    tally.killed += 1
                else:
                    tally.alive.append(mutant)
                    tell(f"  not noticed: {mutant.shown}")
    return tally


def _noticed(tree: Path, mutant: Mutant, tests: Sequence[str]) -> bool:
    """Whether any of the tests fails with the change."""
    if not tests:
        return False
    target = tree / mutant.file.relative_to(ROOT)
    before = target.read_text()
    target.write_text(mutated(before, mutant.number))
    try:
        return _run(tree, ["-x", *tests], LIMIT_S) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        target.write_text(before)


def _learned(tree: Path, server: bool) -> Learned:  # noqa: FBT001 -- of the server's files, or of all others
    """Run the tests without any change, and learn which lines each of them runs. One that fails now shows nothing.

    Raises:
        RuntimeError: more of them fail than being watched so closely explains.
    """
    wanted = f"({POSTGRES})" if server else f"not ({POSTGRES}) and not cluster"
    told = tree / "touched.json"
    files = [f"tests/test_{name}.py" for name in TESTS]
    _run(tree, ["-k", wanted, "-p", "benchmarks.touched", *files], LEARN_S, {VARIABLE: str(told)})
    learned = json.loads(told.read_text())
    if len(failed := learned.pop("failed")) > MOST_FAILING:
        raise RuntimeError(f"the ledger's tests fail without any change: {', '.join(failed)}")
    lines = {line: set(tests) - set(failed) for line, tests in learned["lines"].items()}
    return Learned(lines, learned["took_s"])


def _run(tree: Path, arguments: Sequence[str], limit_s: float, more: Mapping[str, str] | None = None) -> int:
    """Run pytest on a tree; its exit code."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout=30", *arguments]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(more or {})}
    ran = subprocess.run(command, cwd=tree, env=environment, capture_output=True, timeout=limit_s, check=False)
    return ran.returncode


def places_of(file: Path) -> Iterator[Mutant]:
    """Everything in a file that can be changed."""
    for number, (node, what) in enumerate(_places(ast.parse(file.read_text()))):
        line = getattr(node, "lineno", 0)
        yield Mutant(file, number, line, what, getattr(node, "end_lineno", None) or line)


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
    folder.mkdir()
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
    parser.add_argument("--only", action="append", metavar="NAME", help="only this file of budgets/, without .py")
    parser.add_argument("--jobs", type=int, default=1, help="so many at a time (default 1)")
    asked = parser.parse_args(arguments)
    if unknown := set(asked.only or ()) - set(LEDGER):
        parser.error(f"no such file of budgets/: {', '.join(sorted(unknown))}")
    tally = mutants(
        asked.seed, asked.count, lambda text: print(text, flush=True), only=asked.only or LEDGER, jobs=asked.jobs
    )
    print(tally.line())
    return 0 if tally.share >= LEAST_SHARE else 1


if __name__ == "__main__":
    sys.exit(main())
