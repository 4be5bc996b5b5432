"""`mesh forget`: erase what was kept of a tenant, a user or a request. The ledger goes on verifying."""

import asyncio
from typing import Annotated

import orjson
import typer

from budgets.ledger import Act, Book
from mesh.cli.books import actor, with_book
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, store_folder, store_url
from mesh.store.contents import Whose, as_kept, forget
from mesh.store.forget import forget_names
from mesh.store.open import open_contents, open_reviews, open_traversals, open_turns


def command(
    *,
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    user: Annotated[str | None, typer.Option(help="Only this user's, as the client names it.")] = None,
    request: Annotated[str | None, typer.Option(metavar="ID", help="Only this request's, by its whole id.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Erase what fits every option that is given.

    Kept content, reviews and feedback go; in traversals the names that clients gave (user, session, workflow, their
    request ids) and the tags. Sessions and users have no past any more. What was spent stays in the books, with
    sessions and workflows as names of accounts.
    """
    whose = Whose(tenant=tenant, user=None if user is None else as_kept(user), request_id=request)
    url, folder = store_url(store, config), store_folder(store, config)

    async def work(book: Book) -> tuple[int, int]:
        contents = await asyncio.to_thread(open_contents, url, folder)
        traversals = await asyncio.to_thread(open_traversals, url, folder)
        turns = await asyncio.to_thread(open_turns, url, folder)
        reviews = await asyncio.to_thread(open_reviews, url, folder)
        try:
            await book.check()  # what cannot be written down is not done
            await asyncio.to_thread(reviews.forget, whose)  # first: a reply that comes now is not kept without its row
            erased = await forget(contents, book, whose, actor(), reason)
            await asyncio.to_thread(turns.forget, whose)
            named = await asyncio.to_thread(forget_names, traversals, whose)
            about = {"traversals": named}
            await book.record(Act(actor(), "names.forget", whose.shown(), after=about, reason=reason, tenant=tenant))
        finally:
            contents.close()
            traversals.close()
            turns.close()
            reviews.close()
        return erased, named

    erased, named = asyncio.run(with_book(store, config, work))
    if as_json:
        typer.echo(orjson.dumps({"contents": erased, "traversals": named}, option=orjson.OPT_INDENT_2))
    else:
        typer.echo(f"{erased:,} pieces of content are erased, and the names in {named:,} traversals")
