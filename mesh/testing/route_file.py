"""The shape of a route file: example requests of a graph, and where they must go. `mesh test` runs it.

```yaml
tiers:                       # stand-ins for models; what is not named here is as mesh.toml says
  premium: {privacy: public, price: {input: 2.5, output: 10}}
replies:                     # what tiers say; one without a reply says eight words that mean nothing
  premium: It is Paris.
routes:
  - ask: What is 17 + 25?
    expect: {outcome: ok, answered_by: calculator, calls: [], says: "42"}

  - name: an answer that fails its checks escalates
    ask: What is the capital of France?
    replies: {light: I cannot say.}
    expect:
      passes: [small, check, large]
      outcomes: {check: invalid}
      calls: [light, premium]
      at_most: {model_calls: 2, cost_usd: 0.001}

  - name: personal data stays at home, whatever fails and whatever the caller wants
    ask: Write to anna@example.com
    hints: {priority: best}
    failing: {light: timeout}
    expect: {lane: private, never_reaches: [public, premium]}
```

Where a graph asks people, `verdicts` says what they make of it, in turn: `verdicts: rejected`, or `verdicts: [approved,
{judged: rewritten, text: Only in print.}]`. A route without any ends as `review` there.
"""

from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from mesh.units import nusd
from mesh.vocabulary import AttemptStatus, Capability, Ended, Judged, Priority, Privacy, Reason, Risk

E = TypeVar("E", bound=StrEnum)


def _member(words: type[E], *, but: Sequence[E] = ()) -> BeforeValidator:
    """A word of a closed vocabulary; another one is refused with those that there are."""
    known = {str(word): word for word in words if word not in but}

    def member(value: object) -> object:
        if not isinstance(value, str) or value not in known:
            raise ValueError(f"this is none of {', '.join(known)}")
        return known[value]

    return BeforeValidator(member)


def _several(value: object) -> object:
    """One text stands for a list of one."""
    return [value] if isinstance(value, str) else value


def _steps(value: object) -> object:
    """A route may be written as `mesh ask` prints it: 'screen > pii > small'."""
    return [step.strip() for step in value.split(">")] if isinstance(value, str) else value


def _lines(value: object) -> object:
    """One reply for all calls, or one a call; a reply may be its text alone."""
    lines = value if isinstance(value, list) else [value]
    return [{"text": line} if isinstance(line, str) else line for line in lines]


def _dollars(value: object) -> object:
    """Dollars as they were written: the shortest form of a float is what stood in the file."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise ValueError("write dollars like 0.02")  # noqa: TRY004 -- pydantic reports a ValueError with its place
    try:
        amount = Decimal(str(value))
        nusd(amount)
    except (InvalidOperation, ValueError) as error:
        raise ValueError("this is no amount of dollars; write it like 0.02") from error
    return amount


def _not_empty(value: Sequence[Any]) -> Sequence[Any]:
    if not value:
        raise ValueError("an empty list says nothing")
    return value


Failing = Annotated[AttemptStatus, _member(AttemptStatus, but=(AttemptStatus.OK, AttemptStatus.CANCELLED))]
Count = Annotated[int, Field(ge=0)]
Dollars = Annotated[Decimal, BeforeValidator(_dollars)]
Names = Annotated[list[str], BeforeValidator(_several), AfterValidator(_not_empty)]


class Shape(BaseModel):
    """A mapping of the file. Unknown keys are refused, and nothing is converted: `says: 42` wants quotes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Price(Shape):
    """Dollars per million tokens."""

    input: Dollars
    output: Dollars


class Tier(Shape):
    """A stand-in for a model: what routing reads of it."""

    privacy: Annotated[Privacy, _member(Privacy)] = Privacy.PUBLIC
    price: Price = Price(input=Decimal(1), output=Decimal(4))
    region: str | None = None
    capabilities: list[Annotated[Capability, _member(Capability)]] = list(Capability)
    context_window: Annotated[int, Field(ge=1)] = 8_192
    max_output_tokens: Annotated[int, Field(ge=1)] = 1_024
    version: str | None = Field(default=None, description="which calibrations go by; default: its name and -1")
    rank: Count | None = Field(default=None, description="default: the order of the file, above those of mesh.toml")


class Usage(Shape):
    """Tokens that a reply is billed for, whatever was said."""

    input: Count
    output: Count


class Reply(Shape):
    """What a tier says to one call, or how it fails."""

    text: str | None = None
    tool_calls: list[dict[str, Any]] = []
    finish_reason: str | None = None
    fails: Failing | None = None
    delay_s: Annotated[float, Field(ge=0)] = 0
    usage: Usage | None = None
    logprobs: list[Annotated[float, Field(le=0)]] | None = Field(default=None, description="one a word, if asked for")
    top_logprobs: list[dict[str, float]] = Field(default=[], description="what else might have stood there, by text")


Script = Annotated[list[Reply], BeforeValidator(_lines), AfterValidator(_not_empty)]


def _verdicts(value: object) -> object:
    """One verdict, or one for each person in turn; a verdict may be its word alone."""
    given = value if isinstance(value, list) else [value]
    return [{"judged": one} if isinstance(one, str) else one for one in given]


class Verdict(Shape):
    """What a person makes of an answer."""

    judged: Annotated[Judged, _member(Judged)]
    text: str = Field(default="", description="what they write in its place, if it is rewritten")

    @model_validator(mode="after")
    def _says_enough(self) -> "Verdict":
        if (self.judged is Judged.REWRITTEN) != bool(self.text.strip()):
            raise ValueError("a text goes with rewritten, and with nothing else")
        return self


Verdicts = Annotated[list[Verdict], BeforeValidator(_verdicts), AfterValidator(_not_empty)]


class Hints(Shape):
    """What the caller asks for, as in the `mesh` object of a request."""

    priority: Annotated[Priority, _member(Priority)] = Priority.CHEAPEST
    latency_ms: Annotated[int, Field(ge=1)] | None = None
    max_cost_usd: Dollars | None = None
    quality_floor: Annotated[float, Field(ge=0, le=1)] | None = None
    risk: Annotated[Risk, _member(Risk)] | None = None
    privacy: Annotated[Privacy, _member(Privacy)] | None = None
    region: str | None = None
    task: str | None = None
    session: str | None = None
    workflow: str | None = None
    escalate: bool = False
    retry_of: str | None = None
    when: Literal["now", "batch"] = "now"
    allow: Names | None = None
    deny: Names | None = None
    tags: dict[str, str] = {}


class Cap(Shape):
    """The graph's caps, narrowed for one route."""

    hops: Count | None = None
    visits: Count | None = None
    model_calls: Count | None = None
    tokens: Count | None = None
    usd: Dollars | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None


class AtMost(Shape):
    """What a traversal may have used."""

    hops: Count | None = None
    model_calls: Count | None = None
    tokens: Count | None = None
    cost_usd: Dollars | None = None
    seconds: Annotated[float, Field(ge=0)] | None = None


class Expect(Shape):
    """Where a request must go. What is not named is not judged; naming nothing at all is a fault."""

    outcome: Annotated[Ended, _member(Ended)] | None = Field(default=None, description="how the traversal ends")
    answered_by: str | None = Field(default=None, description="the tier that answers, else the node")
    lane: str | None = Field(default=None, description="the last lane entered")
    route: Annotated[list[str], BeforeValidator(_steps)] | None = Field(
        default=None, description="all nodes in order; a list, or 'screen > pii > small'"
    )
    passes: Names | None = Field(default=None, description="nodes that are passed in this order, others between them")
    never_reaches: Names | None = Field(
        default=None, description="nodes that are not passed; tiers and privacy classes that are not called"
    )
    calls: list[str] | None = Field(default=None, description="the tiers called, in order; [] for none")
    outcomes: dict[str, str] | None = Field(default=None, description="how nodes end, the last time that they run")
    rejected: dict[str, Annotated[Reason, _member(Reason)]] | None = Field(
        default=None, description="tiers that are not taken, and the typed reason"
    )
    says: Names | None = Field(default=None, description="texts that the reply holds")
    at_most: AtMost | None = Field(default=None, description="bounds of this request")

    @model_validator(mode="after")
    def _something(self) -> "Expect":
        if all(getattr(self, name) is None for name in type(self).model_fields):
            raise ValueError("this expects nothing, so that it could never fail")
        return self


class Route(Shape):
    """One example request, and where it must go."""

    name: str | None = Field(default=None, description="what it shows; default: the request's text")
    ask: str | None = Field(default=None, description="the user's text")
    system: str | None = Field(default=None, description="a system message before it")
    messages: list[dict[str, Any]] | None = Field(default=None, description="a whole conversation instead")
    before: Names | None = Field(default=None, description="texts that were asked before: what a cache may know")
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    params: dict[str, Any] = Field(default={}, description="further request fields: response_format, temperature ...")
    seed: int = 0
    hints: Hints = Hints()
    cap: Cap = Cap()
    policy: dict[str, float] = Field(default={}, description="named numbers")
    without: Names | None = Field(default=None, description="tiers that are not configured")
    replies: dict[str, Script] = Field(default={}, description="instead of the file's, by tier")
    verdicts: Verdicts | None = Field(default=None, description="what the people say whom the graph asks, in turn")
    failing: dict[str, Failing] = Field(default={}, description="tiers that fail each call, and how")
    expect: Expect

    @model_validator(mode="after")
    def _asks_once(self) -> "Route":
        if (self.ask is None) == (self.messages is None):
            raise ValueError("give either ask or messages")
        if self.system is not None and self.messages is not None:
            raise ValueError("system goes with ask; write it into messages")
        return self

    @property
    def title(self) -> str:
        """What it shows, in one line."""
        return " ".join((self.name or self.ask or "a conversation").split())


class RouteFile(Shape):
    """The whole file."""

    tiers: dict[str, Tier] = {}
    replies: dict[str, Script] = {}
    routes: Annotated[list[Route], AfterValidator(_not_empty)]
