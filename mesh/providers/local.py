"""The wire to tiers that run on our own machines: in this process, or on replicas of their own."""

import asyncio
from typing import Final

from budgets.ledger import Reservation
from mesh.catalogue import Endpoint, ModelSpec
from mesh.clock import Clock
from mesh.errors import MeshError, ProviderError
from mesh.providers.engine import Engine, EngineSource
from mesh.providers.protocol import Call, DeltaSink, Progress, Reply
from mesh.providers.stream import Item, Reader, typed
from mesh.units import US_PER_S, time_text
from mesh.vocabulary import AttemptStatus, Capability, Cause

SEEDS: Final = 2**31  # the engine's own range
READY_LIMIT_US: Final = 30_000_000  # loading included


class LocalProvider:
    """Implements `mesh.providers.protocol.Provider` over whatever engines the source gives."""

    def __init__(self, engines: EngineSource, clock: Clock) -> None:
        self._engines = engines
        self._clock = clock

    async def call(
        self,
        reservation: Reservation,
        spec: ModelSpec,
        endpoint: Endpoint,
        call: Call,
        progress: Progress,
        on_delta: DeltaSink | None,
    ) -> Reply:
        """One chat completion; see `Provider.call` for the contract.

        `progress.queue_us` is the wait for a slot, and for loading where this is the first call. An engine that is
        being restarted says nothing, so it is the limits of `call.timeouts` that end the wait.
        """
        reservation.must_be_live()
        began_us = self._clock.now_us()
        body = _body(spec, call)
        engine = await self._engine(spec, min(call.timeouts.first_token_us, call.timeouts.total_us))
        reader = Reader(
            clock=self._clock,
            timeouts=call.timeouts,
            progress=progress,
            on_delta=on_delta,
            began_us=began_us,
            waited_us=self._clock.now_us() - began_us,
        )
        return await reader.read(engine.chat(body))

    async def ready(self, spec: ModelSpec) -> str | None:
        """None if the tier answers. Loads it if need be, and lets it write one token if it is idle."""
        try:
            async with asyncio.timeout(READY_LIMIT_US / US_PER_S):
                engine = await self._engines.engine(spec)
                return await engine.health()
        except TimeoutError:
            return f"Tier {spec.name!r} did not answer within {time_text(READY_LIMIT_US)}. It may still be loading."
        except MeshError as error:
            return f"Tier {spec.name!r}: {error}"
        except Exception as error:  # noqa: BLE001 -- whatever the engine's side raises, the tier is not ready
            return f"Tier {spec.name!r}: its engine failed with {type(error).__name__}. Its replica's log tells more."

    async def close(self) -> None:
        await self._engines.close()

    async def _engine(self, spec: ModelSpec, limit_us: int) -> Engine:
        """The tier's engine, loaded within the limit. Nothing has been sent yet, whatever happens here."""
        limit = asyncio.timeout(limit_us / US_PER_S)
        try:
            async with limit:
                return await self._engines.engine(spec)
        except Exception as error:
            if limit.expired():
                why = f"the engine was not loaded within {time_text(limit_us)}"
                raise ProviderError(AttemptStatus.TIMEOUT, Cause.FIRST_TOKEN_TIMEOUT, why) from None
            raise typed(error) or _absent(error) from error


def _absent(error: Exception) -> ProviderError:
    if isinstance(error, MeshError):
        return ProviderError(AttemptStatus.UNAVAILABLE, Cause.NOT_CONFIGURED, str(error))
    why = f"the engine was not reached: {type(error).__name__}"
    return ProviderError(AttemptStatus.UNAVAILABLE, Cause.CONNECT_FAILED, why)


def _body(spec: ModelSpec, call: Call) -> Item:
    """OpenAI's request as plain data: mappings of any kind become dictionaries, which every handle can carry.

    Raises:
        ProviderError: tools for a tier that has none. Its chat template would leave them out without a word.
    """
    if call.params.get("tools") and Capability.TOOLS not in spec.capabilities:
        why = 'the tier has no tools: say capabilities = [..., "tools"] if its chat template knows them'
        raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_REJECTED, why, 400)
    seed = call.seed % SEEDS
    return {
        "seed": seed,
        **call.params,
        "messages": [dict(message) for message in call.messages],
        "max_tokens": call.max_tokens,
    }
