"""Prices per kind of token, and what a usage record costs. Integers: pico-dollars per token in, nano-dollars out."""

from dataclasses import dataclass, fields

from mesh.units import ceil_nusd


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call, normalised over providers.

    Invariants: `input` counts all input tokens, `cached_input` and `cache_write` are parts of it; `output` counts all
    output tokens, `reasoning` is a part of it.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    cache_write: int = 0
    reasoning: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Pico-dollars per token, by kind."""

    input_pusd: int
    output_pusd: int
    cached_input_pusd: int
    cache_write_pusd: int
    reasoning_pusd: int

    @property
    def dearest_input_pusd(self) -> int:
        return max(self.input_pusd, self.cached_input_pusd, self.cache_write_pusd)

    @property
    def dearest_output_pusd(self) -> int:
        return max(self.output_pusd, self.reasoning_pusd)

    def dearer_than(self, other: "Rates") -> bool:
        """Whether any kind of token costs more than by `other`."""
        return any(getattr(self, kind.name) > getattr(other, kind.name) for kind in fields(self))


@dataclass(frozen=True, slots=True)
class Prices:
    """A tier's prices: the base rates, and steps that replace them for the whole call above an input length.

    `steps` is ((more than this many input tokens, rates), ...), ascending.
    """

    base: Rates
    steps: tuple[tuple[int, Rates], ...] = ()
    priced: bool = True  # False: a tier of our own without a price, shown as "not priced", never as free

    def rates(self, input_tokens: int) -> Rates:
        """The rates that hold for a call with so many input tokens."""
        chosen = self.base
        for above, rates in self.steps:
            if input_tokens > above:
                chosen = rates
        return chosen

    def cost_nusd(self, usage: Usage) -> int:
        """What these tokens cost, in nano-dollars, rounded up once."""
        rates = self.rates(usage.input)
        plain_input = usage.input - usage.cached_input - usage.cache_write
        pusd = (
            plain_input * rates.input_pusd
            + usage.cached_input * rates.cached_input_pusd
            + usage.cache_write * rates.cache_write_pusd
            + (usage.output - usage.reasoning) * rates.output_pusd
            + usage.reasoning * rates.reasoning_pusd
        )
        return ceil_nusd(pusd)

    def bound_nusd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call with at most so many tokens can cost: the dearest rate of any step that it may reach."""
        reachable = [self.base, *[rates for above, rates in self.steps if input_tokens > above]]
        input_pusd = max([rates.dearest_input_pusd for rates in reachable])
        output_pusd = max([rates.dearest_output_pusd for rates in reachable])
        return ceil_nusd(input_tokens * input_pusd + output_tokens * output_pusd)

    def dearer_than(self, other: "Prices") -> bool:
        """Whether any kind of token costs more by these prices than by `other`, at any input length."""
        starts = {0, *(above + 1 for above, _ in (*self.steps, *other.steps))}
        return any(self.rates(start).dearer_than(other.rates(start)) for start in starts)


NOT_PRICED = Prices(
    Rates(input_pusd=0, output_pusd=0, cached_input_pusd=0, cache_write_pusd=0, reasoning_pusd=0), priced=False
)
