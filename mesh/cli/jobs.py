"""`mesh jobs`: batch requests that wait, run or have ended, as an operator sees them."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Any, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgets.ledger import Act, Book
from mesh.cli.books import actor, with_book
from mesh.cli.stores import ConfigOption, JsonOption, StoreOption, store_folder
from mesh.cli.tree import BAD, GOOD, ODD
from mesh.cli.words import clean, must_be_text
from mesh.config import load_config
from mesh.errors import RequestError, StoreError, nearest
from mesh.store.contents import ContentStore, viewed
from mesh.store.job_content import Answered, cancelled, unpacked
from mesh.store.jobs import PREFIX, Job, JobStore, Wanted, shown
from mesh.store.open import is_shared, open_contents, open_jobs
from mesh.store.sqlite_jobs import FILE_NAME
from mesh.units import utc_text
from mesh.vocabulary import JobState, Purpose

app = typer.Typer(no_args_is_help=True, help="Batch requests: what waits, what runs, what came of them.")

ID_WIDTH: Final = 36
STYLES: Final = {JobState.DONE: GOOD, JobState.FAILED: BAD, JobState.CANCELLED: ODD}
IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The job's id, or its request's.")]


@app.command("list")
def list_jobs(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant's.")] = None,
    state: Annotated[str | None, typer.Option(help="Only these: queued, running, done, failed, cancelled.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="At most so many.")] = 20,
    cursor: Annotated[str | None, typer.Option(help="Go on from an earlier page (next_cursor of --json).")] = None,
    *,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """List jobs, newest first, without what was asked or answered."""
    if state is not None and state not in set(JobState):
        states = [one.value for one in JobState]
        raise RequestError(f"There is no state {clean(state)!r}.{nearest(state, states)}", "state")
    wanted = Wanted(tenant=tenant, state=JobState(state) if state else None, limit=limit, cursor=cursor)
    with _opened(store, config) as (jobs, _):
        page = jobs.find(wanted)
    if as_json:
        told = {"data": [shown(job) for job in page.items], "next_cursor": page.next_cursor}
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
    elif page.items:
        Console().print(_table(page.items))
    else:
        typer.echo("No jobs fit.", err=True)


@app.command("show")
def show_job(
    job_id: IdArgument,
    *,
    reply: Annotated[bool, typer.Option("--reply", help="Its reply too; the audit log says that you saw it.")] = False,
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Show one job, and with --reply what came of it."""
    with _opened(store, config) as (jobs, contents):
        job = _found(jobs.get(_whole(job_id)), job_id)
        told = shown(job)
        if reply:
            told["response"] = asyncio.run(with_book(store, config, lambda book: _reply(job, contents, book)))
    if as_json:
        typer.echo(orjson.dumps(told, option=orjson.OPT_INDENT_2))
        return
    console = Console()
    for name, value in told.items():
        if name != "response":
            console.print(Text(f"{name:<12}{'-' if value is None else clean(str(value))}", _style(job, name)))
    if reply:
        typer.echo(orjson.dumps(told["response"], option=orjson.OPT_INDENT_2))


@app.command("cancel")
def cancel_job(
    job_id: IdArgument,
    *,
    reason: Annotated[str, typer.Option("--reason", help="Why, for the audit log.")] = "",
    as_json: JsonOption = False,
    store: StoreOption = None,
    config: ConfigOption = None,
) -> None:
    """Take a job back. What it asked is erased; a job that runs stops within seconds, and is paid as far as it came."""
    must_be_text(reason=reason)
    with _opened(store, config) as (jobs, contents):

        async def work(book: Book) -> Job:
            await book.check()  # what cannot be written down is not done
            job = _found(await asyncio.to_thread(cancelled, jobs, contents, _whole(job_id)), job_id)
            about = {"state": job.state}
            await book.record(Act(actor(), "job.cancel", job.id, after=about, reason=reason, tenant=job.tenant))
            return job

        job = asyncio.run(with_book(store, config, work))
    if as_json:
        typer.echo(orjson.dumps(shown(job), option=orjson.OPT_INDENT_2))
    elif job.state is JobState.CANCELLED:
        typer.echo(f"{job.id} is cancelled")
    else:
        typer.echo(f"{job.id} has ended already: {job.state}")


async def _reply(job: Job, contents: ContentStore, book: Book) -> dict[str, Any] | None:
    found = await viewed(contents, book, job.tenant, Purpose.QUEUE, job.id, actor=actor())
    told = None if found is None else unpacked(found.data)
    return told.shown() if isinstance(told, Answered) else None


@contextlib.contextmanager
def _opened(store: str | None, config: str | None) -> Iterator[tuple[JobStore, ContentStore]]:
    """The queue that replicas of this store use, and what it holds.

    Raises:
        StoreError: there is none yet, or it cannot be read.
    """
    url, folder = load_config(config, os.environ).store.url, store_folder(store, config)
    if not is_shared(url) and not (folder / FILE_NAME).exists():
        raise StoreError(str(folder), "there are no jobs yet.", "Serve a graph with this store, or name another.")
    jobs, contents = open_jobs(url, folder), open_contents(url, folder)
    try:
        yield jobs, contents
    finally:
        jobs.close()
        contents.close()


def _whole(job_id: str) -> str:
    return job_id if job_id.startswith(PREFIX) else f"{PREFIX}{job_id}"


def _found(job: Job | None, job_id: str) -> Job:
    if job is None:
        raise RequestError(f"There is no job {clean(job_id[:64])!r}. `mesh jobs list` shows what there is.", "id")
    return job


def _table(jobs: tuple[Job, ...]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("id", "queued (UTC)", "tenant", "model", "state", "tries", "outcome"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=ID_WIDTH if name == "id" else None)
    for job in jobs:
        queued = utc_text(job.created_us)[5:19].replace("T", " ")
        cells = (job.id, queued, job.tenant, clean(job.model), job.state, str(job.epoch), job.outcome or "-")
        table.add_row(*(Text(cell, STYLES.get(job.state, "") if cell == job.state else "") for cell in cells))
    return table


def _style(job: Job, name: str) -> str:
    return STYLES.get(job.state, "") if name == "state" else ""
