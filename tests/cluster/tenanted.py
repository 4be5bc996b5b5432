"""Tenants on a served mesh of two replicas: commands typed beside it, and many calls at once whose replies are held."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.neighbours import HELD, Neighbours
from tests.cluster.served import Served

IN_A_ROW = 16  # answers that must agree before both replicas are taken to have spoken
SOON_S = 10


@dataclass
class Tenanted:
    """`command` types a command of `mesh` and gives what it prints; `keys` are those that were made."""

    mesh: Served
    upstream: Neighbours
    command: Callable[..., str]
    keys: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *options: str) -> str:
        """Add a tenant; a key of it that both replicas know."""
        self.command(self.mesh, "tenant", "add", name, *options)
        self.keys[name] = self.command(self.mesh, "tenant", "keys", name, "--new").strip()
        self.both(lambda: self._knows(name))
        return self.keys[name]

    def _knows(self, name: str) -> bool:
        """Asked twice in a row with the key: of replicas that take turns, both have spoken then."""
        known = [self.get("/v1/models", name)[0] == 200 for _ in range(2)]
        return all(known) and self.mesh.get("/v1/models")[0] == 401

    def get(self, path: str, name: str) -> tuple[int, Any]:
        status, body = self.mesh.get(path, {"authorization": f"Bearer {self.keys[name]}"})
        return status, json.loads(body or b"null")

    def ask(self, name: str, text: str, **hints: Any) -> tuple[int, Any]:
        """Ask the tier behind the upstream."""
        body = {"model": "quickstart/premium", "messages": [{"role": "user", "content": text}], "mesh": hints}
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.keys[name]}"}
        request = urllib.request.Request(
            f"{self.mesh.base_url}/v1/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=90) as reply:
                return reply.status, json.load(reply)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except OSError:
            return 0, None

    def both(self, holds: Callable[[], bool]) -> float:
        """Wait until something holds so often in a row that both replicas must have said so; the seconds it took."""
        began = since = time.monotonic()
        agreed = 0
        while agreed < IN_A_ROW:
            assert time.monotonic() < began + SOON_S, "it did not come to hold on both replicas"
            if holds():
                agreed += 1
            else:
                agreed, since = 0, time.monotonic()
        return since - began

    def limit(self, name: str, session: str) -> int | None:
        """What a session of a tenant may spend, as a replica knows it."""
        accounts = self.get(f"/mesh/budget?session={session}", name)[1]["accounts"]
        found: int | None = next(one["cost_nusd"]["limit"] for one in accounts if one["scope"] == "session")
        return found

    def decided(self, name: str, count: int, answered: int, **hints: Any) -> list[tuple[int, Any]]:
        """So many calls at once. Their replies are held until all others are refused, and then let go."""
        self.upstream.release.clear()
        calls = self.upstream.calls
        try:
            with ThreadPoolExecutor(count) as threads:
                running = [threads.submit(self.ask, name, HELD, **hints) for _ in range(count)]
                ends = time.monotonic() + 60
                while sum(one.done() for one in running) + self.upstream.calls - calls < count:
                    assert time.monotonic() < ends
                    time.sleep(0.05)
                early = sum(one.done() for one in running)
                self.upstream.release.set()
                replies = [one.result() for one in running]
        finally:
            self.upstream.release.set()
        assert early == count - answered, f"{early} of {count} were refused while the others were held"
        assert self.upstream.calls - calls == answered
        return replies

    def close(self) -> None:
        """Close all tenants, so that the mesh is open again."""
        for name in self.keys:
            self.command(self.mesh, "tenant", "set", name, "--close")
        self.both(lambda: self.mesh.get("/v1/models")[0] == 200)


def codes(replies: Sequence[tuple[int, Any]]) -> set[tuple[int, str, str]]:
    """Status, code and scope of the replies that are errors."""
    return {(status, body["error"]["code"], body["error"]["param"]) for status, body in replies if status != 200}
