"""The most that one request may use. `None` is unlimited, 0 is nothing."""

from dataclasses import dataclass, replace

from mesh.units import US_PER_S, nusd


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """Upper bounds of one request. Each is checked before the hop that would pass it.

    Args:
        hops: edges walked with the node at their end; END and joins count against none.
        visits: how often any one node may run.
        model_calls: calls on the wire; attempts and hedges count.
        tokens: input and output tokens of all calls together.
        usd: dollars, as text ("0.02"): floats are not money.
        seconds: wall clock from the traversal's start; time spent waiting for a person is not counted.
    """

    hops: int | None = None
    visits: int | None = None
    model_calls: int | None = None
    tokens: int | None = None
    usd: str | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        for name in ("hops", "visits", "model_calls", "tokens", "seconds"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"Cap({name}={value}): a cap is 0 or more, or None for unlimited")
        if self.usd is not None and not isinstance(self.usd, str):
            raise TypeError(f"Cap(usd={self.usd!r}): write dollars as text, like usd='0.02'; floats are not money")
        _ = self.cost_nusd

    @property
    def cost_nusd(self) -> int | None:
        return None if self.usd is None else nusd(self.usd)

    @property
    def time_us(self) -> int | None:
        return None if self.seconds is None else int(self.seconds * US_PER_S)


def lower(one: int | None, other: int | None) -> int | None:
    """The tighter of two caps, where None is unlimited."""
    if one is None:
        return other
    return one if other is None else min(one, other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A request's caps in the units of the hot path, after its hints narrowed the graph's."""

    hops: int | None
    visits: int | None
    model_calls: int | None
    tokens: int | None
    cost_nusd: int | None
    time_us: int | None

    @classmethod
    def of(cls, cap: Cap) -> "Limits":
        return cls(
            hops=cap.hops,
            visits=cap.visits,
            model_calls=cap.model_calls,
            tokens=cap.tokens,
            cost_nusd=cap.cost_nusd,
            time_us=cap.time_us,
        )

    def narrowed(self, *, cost_nusd: int | None = None, time_us: int | None = None) -> "Limits":
        """These limits with what the caller asked for, where that is less."""
        if cost_nusd is None and time_us is None:
            return self
        return replace(self, cost_nusd=lower(self.cost_nusd, cost_nusd), time_us=lower(self.time_us, time_us))
