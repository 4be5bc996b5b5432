"""Checks of code in an answer: it must parse, and it must pass a test.

Code is what stands in fenced blocks. A block's first word names its language, further ones say what it is for:

    ```python test
    assert double(2) == 4
    ```

in the request's last user message is the test that code must pass.
"""

import ast
import re
import tomllib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Final

from mesh.node import Demand, Node
from mesh.state import Answer, Signal, State, Verdict
from mesh.vocabulary import Cause, Kind
from nodes.code_sandbox import Trial, tried
from nodes.json_schema import parsed
from nodes.patterns import found
from nodes.validate import INVALID, VALID

if TYPE_CHECKING:
    from mesh.hop import Hop

UNSUPPORTED: Final = "unsupported"
UNTESTED: Final = "untested"
CODE_CHARS_MAX: Final = 20_000  # parsing takes the event loop's time: up to 50 ms for so much Python
NESTING_MAX: Final = 200  # of brackets
LONG_KEY: Final = r"""(?:(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){32}"""  # tomllib is cubic in its parts
FENCE: Final = re.compile(r"^ {0,3}(`{3,}+|~{3,}+)[ \t]*+([^`\n]*+)$")  # possessive: a long line takes linear time
ALIASES: Final[Mapping[str, str]] = {"py": "python", "python3": "python", "yml": "yaml"}
TEST_WORDS: Final = frozenset({"test", "tests"})


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block: its language ('' where it names none), the further words of its first line, and its text."""

    language: str
    words: frozenset[str]
    text: str = field(repr=False)

    @property
    def is_test(self) -> bool:
        return bool(self.words & TEST_WORDS)


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a text, in order. One that is not closed goes to the end. Linear in the text."""
    blocks: list[Block] = []
    fence, head, lines = "", "", list[str]()
    for line in text.split("\n"):
        bar = FENCE.match(line.rstrip())
        if not fence and bar:
            fence, head, lines = bar[1], bar[2], []
        elif fence and bar and bar[1].startswith(fence) and not bar[2]:
            blocks.append(_block(head, lines))
            fence = ""
        elif fence:
            lines.append(line)
    return [*blocks, _block(head, lines)] if fence else blocks


def _block(head: str, lines: list[str]) -> Block:
    language, *words = head.casefold().split() or [""]
    if language in TEST_WORDS:  # ```test
        language, words = "", [language]
    return Block(ALIASES.get(language, language), frozenset(words), "\n".join(lines))


@dataclass(frozen=True, slots=True)
class CodeParses(Node):
    """The code of the latest answer parses. Outcomes: `valid`, `invalid`, `unsupported`.

    Python, JSON, TOML and YAML are checked. `unsupported`: there is no code, or only of other languages, or too much of
    it; nothing is said of the answer then. Nothing is run. Signals: `code_blocks`, `code_unsupported` (blocks of other
    languages).

    Args:
        language: of blocks that name none; where it is given, an answer without a block is such code as a whole.
        required: an answer without code is `invalid`.

    Raises:
        ValueError: a language that is not checked here.
    """

    language: str | None = None
    required: bool = field(default=False, kw_only=True)

    kind: ClassVar[Kind] = Kind.VALIDATOR

    def __post_init__(self) -> None:
        if self.language is not None and self.language not in PARSERS:
            raise ValueError(f"CodeParses({self.language!r}): checked are {', '.join(PARSERS)}")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({VALID, INVALID, UNSUPPORTED})

    async def run(self, state: State, hop: "Hop") -> Verdict:
        answer = state.answer
        if answer is None:
            return Verdict(outcome=INVALID, because=Cause.NO_ANSWER, valid=False)
        blocks = self._blocks(answer)
        if not blocks:
            outcome = INVALID if self.required and not answer.message.get("tool_calls") else UNSUPPORTED
            return Verdict(outcome=outcome, because=Cause.NO_CODE, valid=False if outcome == INVALID else None)
        checked = [block for block in blocks if block.language in PARSERS]
        signals: dict[str, Signal] = {"code_blocks": len(blocks), "code_unsupported": len(blocks) - len(checked)}
        if not checked:
            return Verdict(outcome=UNSUPPORTED, because=Cause.UNKNOWN_LANGUAGE, signals=signals)
        if sum(len(block.text) for block in checked) > CODE_CHARS_MAX:
            return Verdict(outcome=UNSUPPORTED, because=Cause.LENGTH, signals=signals)
        valid = all(PARSERS[block.language](block.text) for block in checked)
        outcome, because = (VALID, Cause.VALID) if valid else (INVALID, Cause.SYNTAX)
        return Verdict(outcome=outcome, because=because, signals=signals, valid=valid)

    def _blocks(self, answer: Answer) -> list[Block]:
        blocks = blocks_of(answer.text)
        if self.language is None:
            return blocks
        if not blocks and answer.text.strip():
            return [Block(self.language, frozenset(), answer.text)]
        return [Block(block.language or self.language, block.words, block.text) for block in blocks]


@dataclass(frozen=True, slots=True)
class CodePasses(Node):
    """The Python of the latest answer passes a test, in a process of its own. Outcomes: `valid`, `invalid`, `untested`.

    Blocks that name Python or no language are run, in order, as one module, and the test behind them with all their
    names; its `test...` functions and TestCases are called. The answer's own blocks marked `test` are left out. An
    answer without any code is `invalid`. `untested` says nothing of it: there is no test; its code is in another
    language; the operator has not switched execution on (`[execution]` of mesh.toml, off by default); or this machine
    cannot isolate it. Limits are the operator's. A test is no proof against code that sets out to forge its result: it
    runs in the same process.

    Args:
        test: the test; None takes the blocks marked `test` of the request's last user message (see `nodes.code`).
        seconds: of one run, and of the wait for its turn; the operator's figure, where that is less.

    Raises:
        ValueError: the test does not parse, or `seconds` is below 1.
    """

    test: str | None = None
    seconds: int = field(default=10, kw_only=True)

    kind: ClassVar[Kind] = Kind.VALIDATOR

    def __post_init__(self) -> None:
        if self.seconds < 1:
            raise ValueError(f"CodePasses(seconds={self.seconds}): a run needs 1 second or more")
        if self.test is not None and not _python(self.test):
            raise ValueError("CodePasses(test=...): the test does not parse")

    @property
    def outcomes(self) -> frozenset[str]:
        return frozenset({VALID, INVALID, UNTESTED})

    @property
    def demand(self) -> Demand:
        return Demand(seconds=2 * self.seconds)

    async def run(self, state: State, hop: "Hop") -> Verdict:
        if state.answer is None:
            return Verdict(outcome=INVALID, because=Cause.NO_ANSWER, valid=False)
        test = self.test if self.test is not None else _given_test(state)
        if not test.strip():
            return Verdict(outcome=UNTESTED, because=Cause.NO_TEST)
        blocks = [block for block in blocks_of(state.answer.text) if not block.is_test]
        if not blocks:  # what should have been written is not there
            return Verdict(outcome=INVALID, because=Cause.NO_CODE, valid=False)
        code = "\n\n".join(block.text for block in blocks if block.language in ("python", ""))
        if not code.strip():
            return Verdict(outcome=UNTESTED, because=Cause.UNKNOWN_LANGUAGE)
        if len(code) + len(test) > CODE_CHARS_MAX:
            return Verdict(outcome=UNTESTED, because=Cause.LENGTH)
        if not hop.execution.enabled:
            return Verdict(outcome=UNTESTED, because=Cause.EXECUTION_OFF)
        hop.note(execution=True)  # by the operator
        trial = await tried(code, test, hop.execution, self.seconds)
        outcome, because = ENDS[trial]
        valid = None if outcome == UNTESTED else outcome == VALID
        return Verdict(outcome=outcome, because=because, signals={"code_test": str(trial)}, valid=valid)


ENDS: Final[Mapping[Trial, tuple[str, Cause]]] = {
    Trial.PASSED: (VALID, Cause.VALID),
    Trial.FAILED: (INVALID, Cause.TEST_FAILED),
    Trial.LIMIT: (INVALID, Cause.TEST_LIMIT),
    Trial.REFUSED: (UNTESTED, Cause.NOT_ISOLATED),
    Trial.BUSY: (UNTESTED, Cause.NODE_TIMEOUT),
}


def _given_test(state: State) -> str:
    return "\n\n".join(block.text for block in blocks_of(state.request.text) if block.is_test)


def _python(text: str) -> bool:
    if _deep(text):
        return False
    with warnings.catch_warnings():  # a warning's text would quote the code
        warnings.simplefilter("ignore")
        try:
            ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True


def _json(text: str) -> bool:
    return parsed(text)[0]


def _toml(text: str) -> bool:
    if found(LONG_KEY, text):
        return False
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError):  # an integer of too many digits is a ValueError of Python's own
        return False
    return True


def _yaml(text: str) -> bool:
    """Read as events: nothing is built, so that no alias can grow."""
    import yaml  # noqa: PLC0415 -- 20 ms, and seldom needed

    if _deep(text):
        return False
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for _ in yaml.parse(text, Loader=loader):
            pass
    except (yaml.YAMLError, RecursionError):
        return False
    return True


def _deep(text: str) -> bool:
    """Whether brackets nest deeper than anybody writes: parsers are recursive. Those in strings count too."""
    depth = 0
    for bracket in re.finditer(r"[\[({})\]]", text):
        depth = depth + 1 if bracket[0] in "[({" else max(0, depth - 1)
        if depth > NESTING_MAX:
            return True
    return False


PARSERS: Final[Mapping[str, Callable[[str], bool]]] = {
    "python": _python,
    "json": _json,
    "toml": _toml,
    "yaml": _yaml,
}
"""What is checked, by language. Others are `unsupported`."""
