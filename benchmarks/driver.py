"""The load driver: keep-alive HTTP/1.1 on raw asyncio and uvloop, in a process of its own.

`python -m benchmarks.driver` reads one `Load` as JSON on stdin and writes one `Found` as JSON on stdout. Every sample
is kept; every status and every body is checked, after its time was taken. No request is sent again.
"""

import asyncio
import gc
import sys
import time
from dataclasses import asdict
from typing import cast

import orjson
import uvloop

from benchmarks.completion import said
from benchmarks.http1 import FramingError, Message, message
from benchmarks.load import Found, Load


def drive(load: Load) -> Found:
    """Run one load to its end, in this process.

    Returns after `warmup_s + seconds`, or at most `timeout_s` later where replies are still due.
    """
    return uvloop.run(_drive(load))


async def _drive(load: Load) -> Found:
    gc.collect()  # before the clock starts: in a process with much in memory it takes a good part of a second
    clock = _Clock(load)
    found = Found(seconds=load.seconds)
    callers = [_Caller(load, clock, found, index) for index in range(load.connections)]
    gc.disable()  # a pause of the driver must not stand in a sample; a load makes hardly any cycles
    try:
        await asyncio.gather(*(caller.run() for caller in callers))
    finally:
        gc.enable()
    return found


class _Clock:
    """When a load counts: from `begin_ns` (the end of the warm-up) to `end_ns`."""

    def __init__(self, load: Load) -> None:
        self.start_ns = time.perf_counter_ns()
        self.begin_ns = self.start_ns + int(load.warmup_s * 1e9)
        self.end_ns = self.begin_ns + int(load.seconds * 1e9)
        self.last_ns = self.end_ns + int(load.timeout_s * 1e9)


class _Caller(asyncio.Protocol):
    """One connection: send, wait for the reply, check it, and again. A lost connection is a failure, then a new one."""

    def __init__(self, load: Load, clock: _Clock, found: Found, index: int) -> None:
        self.load = load
        self.clock = clock
        self.found = found
        self.index = index
        self.sent = 0
        self.requests = [_request(load, body) for body in load.bodies]
        self.buffer = bytearray()
        self.transport: asyncio.Transport | None = None
        self.sent_ns = 0  # 0: no request is out
        self.first_ns = 0
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.guard: asyncio.TimerHandle | None = None
        self.connecting: asyncio.Task[None] | None = None  # held, or asyncio may drop it

    async def run(self) -> None:
        """Until the load's end."""
        await self._connect()
        self.guard = self.loop.call_later((self.clock.last_ns - time.perf_counter_ns()) / 1e9, self._give_up)
        await self.done
        self.guard.cancel()
        if self.transport is not None:
            self.transport.close()

    async def _connect(self) -> None:
        """Connect and send. A refusal is counted and tried again after 100 ms, until the load's end."""
        while not self.done.done():
            try:
                await self.loop.create_connection(lambda: self, "127.0.0.1", self.load.port)
            except OSError:
                self._fail("refused")
                if time.perf_counter_ns() >= self.clock.end_ns:
                    self._finish()
                await asyncio.sleep(0.1)
            else:
                self._next()
                return

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's own class, which does not inherit
        self.buffer.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        if self.done.done():
            return
        if self.sent_ns:
            self._fail("lost")
            self.sent_ns = 0
        self.connecting = self.loop.create_task(self._connect())

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        now_ns = time.perf_counter_ns()
        if self.load.stream and not self.first_ns and b"data:" in self.buffer:
            self.first_ns = now_ns
        try:
            reply = message(self.buffer, response=True)
        except FramingError:
            self._fail("framing")
            self._drop()
            return
        if reply is not None and self.sent_ns:
            del self.buffer[: reply.end]
            self._received(reply, now_ns)

    def _received(self, reply: Message, now_ns: int) -> None:
        sent_ns, self.sent_ns = self.sent_ns, 0
        if reply.status != 200:
            self._fail(f"status {reply.status}")
        elif self.load.expect is not None and said(reply.body, stream=self.load.stream) != self.load.expect:
            self._fail("body")
        elif self.clock.begin_ns <= sent_ns and now_ns <= self.clock.end_ns:
            self.found.samples_ns.append(now_ns - sent_ns)
            if self.load.stream:
                self.found.first_ns.append(self.first_ns - sent_ns)
        if reply.closes:
            self._drop()
        else:
            self._later()

    def _later(self) -> None:
        """Send the next request when it is due: after the idling, or in its slot where the rate is bounded."""
        wait_s = self.load.idle_us / 1e6
        if self.load.rate_per_s:
            slot = (self.sent * self.load.connections + self.index) / self.load.rate_per_s
            wait_s = max(wait_s, slot - (time.perf_counter_ns() - self.clock.start_ns) / 1e9)
        if wait_s > 0:
            self.loop.call_later(wait_s, self._next)
        else:
            self._next()

    def _next(self) -> None:
        if self.done.done() or self.transport is None:
            return  # a lost connection begins anew by itself
        if time.perf_counter_ns() >= self.clock.end_ns:
            self._finish()
            return
        request = self.requests[(self.sent * self.load.connections + self.index) % len(self.requests)]
        self.sent += 1
        self.found.sent += 1
        self.first_ns = 0
        self.sent_ns = time.perf_counter_ns()
        self.transport.write(request)

    def _drop(self) -> None:
        """Close this connection; `connection_lost` opens the next one."""
        self.sent_ns = 0
        if self.transport is not None:
            self.transport.close()

    def _give_up(self) -> None:
        if self.sent_ns:
            self._fail("timeout")
        self._finish()

    def _finish(self) -> None:
        if not self.done.done():
            self.done.set_result(None)

    def _fail(self, kind: str) -> None:
        self.found.failures[kind] = self.found.failures.get(kind, 0) + 1


def _request(load: Load, body: str) -> bytes:
    content = body.encode()
    headers = {
        "host": f"127.0.0.1:{load.port}",
        "content-type": "application/json",
        "content-length": str(len(content)),
        **load.headers,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{load.method} {load.path} HTTP/1.1\r\n{lines}\r\n".encode() + content


def main() -> None:
    """One load from stdin, its findings to stdout."""
    found = drive(Load(**orjson.loads(sys.stdin.buffer.read())))
    sys.stdout.buffer.write(orjson.dumps(asdict(found)))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
