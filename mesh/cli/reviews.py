"""`mesh reviews`: what waits for a person, what there is to judge, and the verdicts."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgets.ledger import Book
from mesh.cli.books import actor, with_book
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, opened_reviews
from mesh.cli.words import clean, clean_text, must_be_text
from mesh.engine.kept import view_of
from mesh.errors import RequestError
from mesh.reviews import Reviews, judged_act, viewed_act
from mesh.state import Judgement, message_text
from mesh.store.reviews import Review, Wanted
from mesh.vocabulary import Judged, Reviewed

T = TypeVar("T")
app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

ReviewArgument = Annotated[str, typer.Argument(metavar="REVIEW", help="Its id, as `mesh reviews list` shows it.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for the audit log.")]
Work = Callable[[Reviews, Book], Awaitable[T]]


@app.command("list")
def listed(
    *,
    state: Annotated[Reviewed | None, typer.Option("--state", help="Only these. Default: all, newest first.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Only this tenant's.")] = None,
    graph: Annotated[str | None, typer.Option("--graph", help="Only this graph's.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1_000)] = 50,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List reviews, newest first, without content."""
    wanted = Wanted(state=state, tenant=tenant, graph=graph, limit=limit)

    async def work(reviews: Reviews, _: Book) -> dict[str, Any]:
        page = await reviews.off(reviews.rows.find, wanted)
        return page.to_json()

    page = _on(store, config, work)
    if as_json:
        _json(page)
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("review", "state", "verdict", "by", "graph", "node", "tenant", "due"):
        table.add_column(title, overflow="fold" if title == "review" else "ellipsis")
    for row in page["data"]:
        cells = (
            clean(row[name] or "") for name in ("id", "state", "verdict", "actor", "graph", "node", "tenant", "due_at")
        )
        table.add_row(*map(Text, cells))
    Console().print(table if page["data"] else "No reviews.")


@app.command("show")
def show(
    review_id: ReviewArgument,
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show what is to be judged, or what it came to. The audit log says who looked."""

    async def work(reviews: Reviews, book: Book) -> dict[str, Any]:
        review = await reviews.found(review_id)
        saved = await reviews.saved(review)
        reply = None if saved is not None else await reviews.reply(review)
        await book.record(viewed_act(review, actor()))
        content = None if saved is None else view_of(saved, review.node)
        return {**review.to_json(), "content": content, "response": reply}

    told = _on(store, config, work)
    if as_json:
        _json(told)
    else:
        _print(told)


@app.command("approve")
def approve(
    review_id: ReviewArgument,
    *,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Let the answer go out as it is."""
    _judge(review_id, Judgement(Judged.APPROVED), reason, store, config, as_json=as_json)


@app.command("rewrite")
def rewrite(
    review_id: ReviewArgument,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What is answered instead; - reads it from stdin.")],
    *,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Answer with a text of your own."""
    said = _piped() if text == "-" else text
    _judge(review_id, Judgement(Judged.REWRITTEN, said), reason, store, config, as_json=as_json)


@app.command("reject")
def reject(
    review_id: ReviewArgument,
    *,
    reason: ReasonOption = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Say that this is no answer. Where the request goes then is the graph's to say."""
    _judge(review_id, Judgement(Judged.REJECTED), reason, store, config, as_json=as_json)


def _piped() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError:
        raise RequestError("The text on stdin is not valid UTF-8. Nothing was done.", "text") from None


def _judge(
    review_id: str, judgement: Judgement, reason: str, store: str | None, config: str | None, *, as_json: bool
) -> None:
    """Take the verdict. A replica that serves the graph walks on with it, within a second or two."""
    must_be_text(text=judgement.text, reason=reason)

    async def work(reviews: Reviews, book: Book) -> Review:
        await book.check()  # what cannot be written down is not done
        claimed = await reviews.judge(review_id, judgement, actor(), lease_us=0)
        await book.record(judged_act(claimed, judgement, reason))
        return claimed

    claimed = _on(store, config, work)
    if as_json:
        _json(claimed.to_json())
    else:
        typer.echo(f"{claimed.id} is {claimed.judged}. A replica that serves {claimed.graph} walks on with it now.")


def _on(store: str | None, config: str | None, work: Work[T]) -> T:
    """Do some work on the reviews that replicas of this store keep."""

    async def opened(book: Book) -> T:
        reviews = await asyncio.to_thread(opened_reviews, store, config)
        try:
            return await work(reviews, book)
        finally:
            reviews.close()

    return asyncio.run(with_book(store, config, opened))


def _print(told: dict[str, Any]) -> None:
    console = Console()
    verdict = f", {told['verdict']} by {clean(told['actor'])}" if told["verdict"] else ""
    console.print(Text(f"{told['id']}  {told['state']}{verdict}, due {told['due_at']}", style="bold"))
    console.print(Text(f"{told['graph']} at {told['node']}, tenant {told['tenant']}, request {told['request_id']}"))
    content = told["content"]
    if content is None:
        console.print(Text(clean_text(_reply(told["response"]))))
        return
    for message in content["messages"]:
        said = clean_text(message_text(message))  # clients chose it
        console.print(Text(f"\n{message.get('role', '')}:", style="bold"), Text(said))
    for answer in content["answers"]:
        mark = "to judge: " if answer["to_judge"] else ""
        who = f"{answer['node']}{' (' + answer['model'] + ')' if answer['model'] else ''}"
        console.print(
            Text(f"\n{mark}{who}:", style="bold green" if mark else "bold"),
            Text(clean_text(message_text(answer["message"]))),
        )


def _reply(response: dict[str, Any] | None) -> str:
    if response is None:
        return "Nothing is kept of it any more."
    error = response.get("error") or response.get("body", {}).get("error")
    if error:
        return str(error["message"])
    message = response.get("message") or response["body"]["choices"][0]["message"]
    return message_text(message)


def _json(data: Any) -> None:
    typer.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2))
