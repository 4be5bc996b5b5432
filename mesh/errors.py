"""The error tree. Each message says what happened, the figure, the limit and the remedy.

    MeshError
    ├── ConfigError            mesh.toml, a graph module or the environment is wrong
    │   └── GraphError         a graph has structural faults: all of them, at once
    ├── DeclarationError       a node does more than it declares: a bug in the node
    ├── RequestError           the client's request is wrong: nothing was sent and nothing was spent
    │   └── UnknownModelError
    ├── BudgetExceededError    an account refused; nothing was sent and nothing was spent
    ├── RateLimitedError       a tenant's requests per minute, or at a time, are used up; nothing ran
    ├── InProgressError        a request with the same Idempotency-Key still runs; this one did not
    ├── RegisterConflictError  what was to be changed has changed meanwhile
    ├── LedgerUnavailableError the ledger cannot be asked, so nothing may be spent
    ├── ReservationError       a provider was called without a live reservation: a bug in the caller
    ├── ProviderError          a call on the wire failed
    └── StoreError             traversals cannot be read or written

Fields are the positional `args`: Ray rebuilds an error on another process as `type(*args)`. HTTP statuses are decided
in `mesh.serve.status`, not here.
"""

import difflib
from collections.abc import Iterable, Sequence
from typing import ClassVar

from mesh.vocabulary import AttemptStatus, Cause


def nearest(name: str, known: Iterable[str]) -> str:
    """' Did you mean X?' for the closest known name, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names) or 'none'}."


class MeshError(Exception):
    """Base of all errors that this project raises on purpose."""

    retryable: ClassVar[bool] = False


class ConfigError(MeshError):
    """Configuration that cannot be used, with where it stands and what to do."""

    def __init__(self, where: str, problem: str, remedy: str = "") -> None:
        super().__init__(where, problem, remedy)
        self.where, self.problem, self.remedy = where, problem, remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}" + (f" {self.remedy}" if self.remedy else "")


class GraphError(MeshError):
    """A graph with structural faults. All of them are listed."""

    def __init__(self, graph: str, faults: Sequence[str]) -> None:
        super().__init__(graph, tuple(faults))
        self.graph, self.faults = graph, tuple(faults)

    def __str__(self) -> str:
        lines = "".join(f"\n  - {fault}" for fault in self.faults)
        return f"graph {self.graph!r} has {len(self.faults)} fault(s):{lines}"


class DeclarationError(MeshError):
    """A node does more than it declares. Its graph's bounds and proofs rest on that, so it is stopped."""

    def __init__(self, node: str, declared: str, problem: str) -> None:
        super().__init__(node, declared, problem)
        self.node, self.declared, self.problem = node, declared, problem

    def __str__(self) -> str:
        return f"Node {self.node!r}: {self.problem}, which its `{self.declared}` does not declare. Declare it there."


class RequestError(MeshError):
    """What the client sent cannot be used. Nothing ran."""

    def __init__(self, message: str, param: str | None = None, code: str = "invalid_request") -> None:
        super().__init__(message, param, code)
        self.message, self.param, self.code = message, param, code

    def __str__(self) -> str:
        return self.message


class UnknownModelError(RequestError):
    """No graph, alias or tier has this name."""

    def __init__(self, model: str, known: Sequence[str]) -> None:
        RequestError.__init__(self, f"No model {model!r} here.{nearest(model, known)}", "model", "model_not_found")
        self.args = (model, tuple(known))


class BudgetExceededError(MeshError):
    """The next call would pass a limit; nothing was sent and nothing was spent."""

    def __init__(self, scope: str, account: str, dimension: str, asked: int, used: int, limit: int) -> None:
        super().__init__(scope, account, dimension, asked, used, limit)
        self.scope, self.account, self.dimension = scope, account, dimension
        self.asked, self.used, self.limit = asked, used, limit

    def __str__(self) -> str:
        return (
            f"The {self.scope} budget {self.account!r} has {self.limit - self.used} {self.dimension} left of "
            f"{self.limit}, and this call may need {self.asked}. Raise the limit, or ask for fewer tokens."
        )


class RateLimitedError(MeshError):
    """A tenant asks faster than it may; nothing ran. `what`: `requests_per_minute` or `concurrency`."""

    retryable = True

    def __init__(self, what: str, used: int, limit: int, retry_us: int) -> None:
        super().__init__(what, used, limit, retry_us)
        self.what, self.used, self.limit, self.retry_us = what, used, limit, retry_us

    def __str__(self) -> str:
        per = "begun in the last minute" if self.what == "requests_per_minute" else "running"
        after = f"Send it again in {-(-self.retry_us // 1_000_000)} s."
        return f"{self.used} requests are {per}, and the limit of this tenant is {self.limit}. {after}"


class InProgressError(MeshError):
    """A request with the same Idempotency-Key runs now; this one did not. `request_id` is the other's, if known."""

    retryable = True

    def __init__(self, request_id: str) -> None:
        super().__init__(request_id)
        self.request_id = request_id

    def __str__(self) -> str:
        which = f" ({self.request_id})" if self.request_id else ""
        return f"A request with this Idempotency-Key is running{which}. Ask again in 1 s for its reply."


class RegisterConflictError(MeshError):
    """Somebody else changed it first; nothing was kept."""

    retryable = True

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(kind, name)
        self.kind, self.name = kind, name

    def __str__(self) -> str:
        return f"The {self.kind} {self.name!r} was changed by somebody else just now. Look at it, and try again."


class LedgerUnavailableError(MeshError):
    """The ledger cannot be asked, so nothing may be spent."""

    retryable = True

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

    def __str__(self) -> str:
        return f"The ledger cannot be asked ({self.why}), so no call is made. Try again shortly."


class ReservationError(MeshError):
    """A provider was asked to call without a live reservation. Call models by `hop.call` only."""

    def __init__(self, reservation_id: str, state: str) -> None:
        super().__init__(reservation_id, state)
        self.reservation_id, self.state = reservation_id, state

    def __str__(self) -> str:
        return (
            f"Reservation {self.reservation_id!r} is {self.state}, so no call is made. Call models by `hop.call` only."
        )


class ProviderError(MeshError):
    """A call on the wire failed. `status` is the attempt's, `cause` the typed reason, `detail` for operators.

    `upstream_status` is the HTTP status that the provider sent, if any; `retry_after_us` what it asked us to wait.
    """

    def __init__(
        self,
        status: AttemptStatus,
        cause: Cause,
        detail: str = "",
        upstream_status: int | None = None,
        retry_after_us: int | None = None,
    ) -> None:
        super().__init__(status, cause, detail, upstream_status, retry_after_us)
        self.status, self.cause, self.detail = status, cause, detail
        self.upstream_status, self.retry_after_us = upstream_status, retry_after_us

    def __str__(self) -> str:
        shown = f" (HTTP {self.upstream_status})" if self.upstream_status else ""
        return f"{self.cause}{shown}" + (f": {self.detail}" if self.detail else "")


class StoreError(MeshError):
    """Traversals cannot be read or written."""

    retryable = True

    def __init__(self, path: str, problem: str, remedy: str = "") -> None:
        super().__init__(path, problem, remedy)
        self.path, self.problem, self.remedy = path, problem, remedy

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" + (f" {self.remedy}" if self.remedy else "")
