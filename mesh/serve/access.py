"""What a caller may do, and what its tenant makes of a request. A hint only narrows what the tenant may."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from budgets.directory import Caller
from budgets.tenants import Tenant
from mesh.errors import RequestError
from mesh.serve.wire import ChatCall
from mesh.vocabulary import Role

NOT_ALLOWED: Final = "not_allowed"
ESCALATE: Final[Mapping[str, Any]] = {"hint": "escalate", "why": "this tenant may not escalate"}


def must_act(caller: Caller) -> None:
    """Refuse a key that may only read, or only review.

    Raises:
        RequestError: code `not_allowed`.
    """
    if caller.role not in (Role.OPERATOR, Role.TENANT):
        raise RequestError("This key may only read. Use one whose role is tenant or operator.", None, NOT_ALLOWED)


def must_operate(caller: Caller) -> None:
    """Refuse a key that is not an operator's.

    Raises:
        RequestError: code `not_allowed`.
    """
    if caller.role is not Role.OPERATOR:
        raise RequestError("This page is for operators. Use a key whose role is operator.", None, NOT_ALLOWED)


def scope_of(caller: Caller, asked: str | None = None) -> str | None:
    """The tenant whose data a caller sees; None: everybody's.

    Args:
        asked: the tenant that it names, if any. An operator sees whichever it names.

    Raises:
        RequestError: code `not_allowed`: it names another tenant.
    """
    if caller.role is Role.OPERATOR:
        return asked
    if asked not in (None, caller.tenant.name):
        raise RequestError("This key sees its own tenant only. Leave `tenant` out.", "tenant", NOT_ALLOWED)
    return caller.tenant.name


def must_ask(tenant: Tenant, graph: str) -> None:
    """Refuse a graph that a tenant may not use.

    Raises:
        RequestError: code `not_allowed`.
    """
    if not tenant.may_ask(graph):
        name = graph[:64]
        raise RequestError(f"This tenant may not use {name!r}. /v1/models lists what it may.", "model", NOT_ALLOWED)


def as_tenant(call: ChatCall, tenant: Tenant) -> tuple[ChatCall, tuple[Mapping[str, Any], ...]]:
    """The call as the tenant may make it, and the hints that were left out of it."""
    hints = call.request.hints
    changes: dict[str, Any] = {}
    if "priority" not in call.hints_given and hints.priority is not tenant.preferred:
        changes["priority"] = tenant.preferred
    ignored: tuple[Mapping[str, Any], ...] = ()
    if hints.escalate and not tenant.may_escalate:
        changes["escalate"] = False
        ignored = (ESCALATE,)
    if not changes:
        return call, ignored
    return replace(call, request=replace(call.request, hints=replace(hints, **changes))), ignored
