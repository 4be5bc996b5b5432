"""What a replica does about budgets beside its calls: it reads them, counts who escalates, and raises alerts."""

import asyncio
from collections.abc import Callable

from budgets.beside import Beside
from budgets.burn import FAST_BURN_PERCENT
from budgets.gauge import Gauges
from budgets.ledger import Book
from budgets.outbox import Outbox
from budgets.throttle import Throttle
from mesh.serve.alerts import EVERY_S, FIRST_RETRY_S, Alerting, Sender


class BudgetWatch:
    """`gauges` and `throttle` are for the replica's door, `alerting` for its pages, `outbox` for what others tell.

    Args:
        beside: the tables beside the ledger's books; closed with the watch.
        now_us: the store's time of day, without asking it.
        sender: whom alerts are sent to; None: nobody.
        every_s, first_retry_s: see `mesh.serve.alerts`.
    """

    def __init__(
        self,
        book: Book,
        beside: Beside,
        now_us: Callable[[], int],
        *,
        sender: Sender | None = None,
        fast_burn_percent: int | None = FAST_BURN_PERCENT,
        every_s: float = EVERY_S,
        first_retry_s: float = FIRST_RETRY_S,
    ) -> None:
        self._beside = beside
        self.gauges = Gauges(book, now_us)
        self.throttle = Throttle(beside)
        self.outbox = Outbox(beside, sends=sender is not None)
        self.alerting = Alerting(
            book,
            self.outbox,
            readings=self.gauges.readings,
            sender=sender,
            fast_burn_percent=fast_burn_percent,
            every_s=every_s,
            first_retry_s=first_retry_s,
        )

    async def start(self) -> None:
        await self.gauges.start()
        await self.throttle.start()
        await self.alerting.start()

    async def stop(self) -> None:
        await self.alerting.stop()
        await self.throttle.stop()
        await self.gauges.stop()
        await asyncio.to_thread(self._beside.close)
