"""Stop functions and files from growing: 90 % of all functions fit a screen, and no file is longer than a sitting.

python .ci/lengths.py mesh nodes budgets graphs
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

P90_LINES = 30
FILE_LINES = 600
SHOWN = 10


class Function(NamedTuple):
    """A function and its length in lines, decorators left out."""

    lines: int
    where: str


def main(folders: list[str]) -> int:
    """Print what is too long; the number of faults is the exit status."""
    files = sorted(path for folder in folders for path in Path(folder).rglob("*.py"))
    texts = {path: path.read_text() for path in files}
    functions = sorted((one for path, text in texts.items() for one in _functions(path, text)), reverse=True)
    counts = {path: len(text.splitlines()) for path, text in texts.items()}
    faults = [f"{path} has {n} lines, the limit is {FILE_LINES}" for path, n in counts.items() if n > FILE_LINES]
    p90 = functions[len(functions) // 10].lines if functions else 0
    if p90 > P90_LINES:
        faults.append(f"p90 of function length is {p90} lines, the limit is {P90_LINES}. The longest:")
        faults += [f"  {one.lines:4d} {one.where}" for one in functions[:SHOWN]]
    longest = max(counts.values(), default=0)
    print(*faults, sep="\n", end="\n" if faults else "")
    print(f"{len(functions)} functions, p90 {p90} lines; {len(files)} files, the longest {longest} lines")
    return 1 if faults else 0


def _functions(path: Path, text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text, str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="+")
    sys.exit(main(parser.parse_args().folders))
