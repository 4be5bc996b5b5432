"""Whether code of answers may be run on this machine, and with how much. Off unless the operator says otherwise."""

import asyncio
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What `[execution]` of mesh.toml says.

    Args:
        enabled: code may be run, isolated (`nodes.code_sandbox`).
        seconds: of one run, waiting for its turn left out; of processor time no more.
        memory_mib: address space of one run.
        at_once: runs at a time in each replica; further ones wait for their turn.
    """

    enabled: bool = False
    seconds: int = 5
    memory_mib: int = 256
    at_once: int = 1
    turns: asyncio.Semaphore = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "turns", asyncio.Semaphore(self.at_once))


NO_EXECUTION: Final = Execution()
