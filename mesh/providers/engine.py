"""What hosts a model on our own machines, and where a local tier finds its engine."""

import asyncio
from collections.abc import Mapping
from typing import Protocol

from mesh.catalogue import ModelSpec
from mesh.errors import ConfigError, nearest
from mesh.providers.stream import Item, Stream


class Engine(Protocol):
    """A model that can be asked: in this process, or on a replica behind a handle."""

    def chat(self, body: Item) -> Stream:
        """One chat completion, always streamed. `body` is OpenAI's request as plain data.

        The stream's items are described in `mesh.providers.stream`; a timing ends it. Closing the stream, or
        cancelling who reads it, stops the generation.

        Raises:
            ProviderError: the engine refused the request, or failed. While reading, not while calling.
        """
        ...

    async def health(self) -> str | None:
        """None if it can answer, else one line that says why not."""
        ...


class EngineSource(Protocol):
    """Where a local tier's engine is."""

    async def engine(self, spec: ModelSpec) -> Engine:
        """The engine of this tier. The first call may take as long as loading does.

        Raises:
            ConfigError: there is none, or it cannot be loaded.
        """
        ...

    async def close(self) -> None: ...


class PlacedEngines:
    """Engines that somebody else started: tier by tier, such as the handles of Ray Serve's replicas."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = dict(engines)

    async def engine(self, spec: ModelSpec) -> Engine:
        found = self._engines.get(spec.name)
        if found is None:
            raise ConfigError(f"tier {spec.name}", f"no engine was placed for it.{nearest(spec.name, self._engines)}")
        return found

    async def close(self) -> None:
        """Nothing: who started the engines ends them."""


class GgufEngines:
    """Engines of this process: each is loaded when it is first asked for, in a thread, once.

    The thread keeps timeouts and cancellation working, but the load itself holds up the process (see `GgufEngine`):
    call `LocalProvider.ready` at start, and place large models on replicas of their own.
    """

    def __init__(self) -> None:
        self._engines: dict[str, Engine] = {}
        self._loading: dict[str, asyncio.Task[Engine]] = {}

    async def engine(self, spec: ModelSpec) -> Engine:
        """The tier's engine. Who stops waiting does not stop the loading."""
        key = repr((spec.path, spec.version, spec.context_window, sorted(spec.options.items())))
        if (found := self._engines.get(key)) is not None:
            return found
        loading = self._loading.get(key)
        if loading is None:
            loading = self._loading[key] = asyncio.create_task(self._load(key, spec))
            loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # it may be that nobody waits
        return await asyncio.shield(loading)

    async def close(self) -> None:
        """End every engine. A generation that still runs is stopped first."""
        for task in list(self._loading.values()):
            await asyncio.wait({task})
        engines, self._engines = self._engines, {}
        for engine in engines.values():
            if (close := getattr(engine, "close", None)) is not None:
                await close()

    async def _load(self, key: str, spec: ModelSpec) -> Engine:
        from mesh.providers.gguf import engine_of, settings_of  # noqa: PLC0415 -- only where a local tier is used

        try:
            loaded = self._engines[key] = await asyncio.to_thread(engine_of, settings_of(spec))
        finally:
            del self._loading[key]
        return loaded
