"""What nodes that call one tier declare alike."""

from mesh.node import Node
from mesh.vocabulary import FAILURES


class Caller(Node):
    """Base of nodes that call `tier`. They end with their own outcomes or a standard failure.

    Subclasses have these fields; where `optional` is set, the catalogue may lack the tier.
    """

    tier: str
    optional: bool

    @property
    def failures(self) -> frozenset[str]:
        return FAILURES

    @property
    def tiers(self) -> tuple[str, ...]:
        return (self.tier,)

    @property
    def optional_tiers(self) -> tuple[str, ...]:
        return self.tiers if self.optional else ()
