"""The error tree. Each message says what happened, the figure, the limit and the remedy.

    MeshError
    ├── ConfigError            mesh.toml, a graph module or the environment is wrong
    │   └── GraphError         a graph has structural faults: all of them, at once
    ├── RequestError           the client's request is wrong: nothing was sent and nothing was spent
    │   └── UnknownModelError
    ├── BudgetExceededError    an account refused; nothing was sent and nothing was spent
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
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
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
