"""A served API with tenants: what tests of tenants, keys and budgets share."""

import asyncio
import contextlib
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from budgets.account import Quota
from budgets.clerk import Clerk
from budgets.keys import public_of
from budgets.ledger import Book
from budgets.open import open_ledger
from budgets.tenants import Caps, Tenant
from mesh.graph import Graph
from mesh.providers.protocol import Reply as ProviderReply
from mesh.providers.scripted import ScriptedProvider
from mesh.vocabulary import Role
from tests.api_server import Served, served

SOON_S = 5.0
CHAT = "/v1/chat/completions"


@dataclass
class Reply:
    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        found: dict[str, Any] = self.body["error"]
        return found

    @property
    def failed(self) -> tuple[int, str]:
        return self.status, self.error["code"]


def fetched(url: str, key: str | None = None, data: Any = None, **headers: str) -> Reply:
    """GET, or POST of JSON."""
    sent = {"content-type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if key is not None:
        sent["authorization"] = f"Bearer {key}"
    request = urllib.request.Request(url, None if data is None else json.dumps(data).encode(), sent)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            raw, status, shown = reply.read(), reply.status, dict(reply.headers)
    except urllib.error.HTTPError as error:
        raw, status, shown = error.read(), error.code, dict(error.headers)
    return Reply(status, shown, json.loads(raw) if "json" in shown.get("content-type", "") else raw)


@dataclass
class House:
    """A mesh and the operator's own view of its ledger: another process, as the command line would be."""

    mesh: Served
    book: Book
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def clerk(self) -> Clerk:
        return Clerk(self.book, "cli:ada")

    def get(self, path: str, key: str | None = None, **headers: str) -> Reply:
        return fetched(self.mesh.url + path, key, **headers)

    def ask(self, key: str | None = None, text: str = "hello", model: str = "one", **fields: Any) -> Reply:
        body = {"model": model, "messages": [{"role": "user", "content": text}], **fields}
        return fetched(self.mesh.url + CHAT, key, body)

    def record(self, reply: Reply, key: str | None = None) -> dict[str, Any]:
        """The traversal of a reply, once it is kept."""
        path = f"/mesh/traversals/{reply.headers['x-mesh-request-id']}"
        self.until(lambda: self.get(path, key).status == 200)
        found: dict[str, Any] = self.get(path, key).body
        return found

    def tenant(self, name: str, role: Role = Role.TENANT, **fields: Any) -> str:
        """Add a tenant, and give back a key of it that holds already."""
        asyncio.run(self.clerk.add(Tenant(name=name, **fields)))
        return self.key(name, role)

    def key(self, name: str, role: Role, expires_us: int | None = None) -> str:
        text = asyncio.run(self.clerk.new_key(name, role, expires_us)).text
        self.hears_of(text)
        return text

    def hears_of(self, key: str) -> None:
        """Wait until the mesh knows a key."""
        self.until(lambda: public_of(key) in self.mesh.api._tenancy.directory.keys)

    def set(self, name: str, **changes: Any) -> None:
        """Change a tenant, and wait until the mesh has heard of it."""
        before = self.mesh.api._tenancy.directory.version
        asyncio.run(self.clerk.set(name, changes))
        self.until(lambda: self.mesh.api._tenancy.directory.version > before)

    def until(self, there: Callable[[], bool]) -> None:
        ends = time.monotonic() + SOON_S
        while not there():
            assert time.monotonic() < ends, "it did not come to hold"
            time.sleep(0.02)


class Held(ScriptedProvider):
    """Tiers whose replies are held back until they are let go."""

    def __init__(self, scripts: Mapping[str, Any]) -> None:
        super().__init__(scripts)
        self.waiting = 0
        self.gone = threading.Event()

    async def call(self, *arguments: Any) -> ProviderReply:
        self.waiting += 1
        while not self.gone.is_set():  # noqa: ASYNC110 -- another thread sets it
            await asyncio.sleep(0.01)
        return await super().call(*arguments)


def decided(held: list[Held], sends: list[Callable[[], Reply]], answered: int) -> list[Reply]:
    """Send all at once, wait until all but `answered` are refused, and only then let the held replies go."""
    with ThreadPoolExecutor(len(sends)) as threads:
        running = [threads.submit(send) for send in sends]
        ends = time.monotonic() + 30
        while sum(one.done() for one in running) + sum(each.waiting for each in held) < len(sends):
            assert time.monotonic() < ends
            time.sleep(0.02)
        early = sum(one.done() for one in running)
        for each in held:
            each.gone.set()
        replies = [one.result() for one in running]
    assert early == len(sends) - answered, f"{early} of {len(sends)} were refused while the others were held"
    return replies


@contextlib.contextmanager
def house(folder: Path, url: str, graphs: list[Graph], replies: Mapping[str, Any], **options: Any) -> Iterator[House]:
    """Serve graphs on a ledger at `url`."""
    ledger, book = open_ledger(url, owner="replica"), open_ledger(url, owner="operator")
    with served(folder, graphs, replies, ledger=ledger, **options) as mesh:
        yield House(mesh, book)
    asyncio.run(ledger.close())
    asyncio.run(book.close())


def bill_of(*meshes: Served) -> dict[str, int]:
    """What the scripted providers charge for all their calls, in nano-dollars by reservation."""
    found: dict[str, int] = {}
    for mesh in meshes:
        tiers = next(iter(mesh.api._models.meshes.values())).door.catalogue.tiers
        for one in mesh.provider.bills:
            prices = tiers[one.tier].prices
            assert prices is not None
            found[one.reservation_id] = prices.cost_nusd(one.usage)
    return found


def usd(nusd: int | None = None, **others: int) -> Caps:
    return Caps(hard=Quota(nusd, **others))
