"""Where a ledger lies, as an address: `sqlite:///var/lib/mesh/ledger.sqlite3`, `postgresql://user@host/name`."""

from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

FILE_NAME: Final = "ledger.sqlite3"
POSTGRES: Final = frozenset({"postgresql", "postgres"})
REMEDY: Final = "Write memory:, sqlite:///absolute/path or postgresql://user@host/database."


def ledger_url(folder: Path) -> str:
    """The address of the embedded ledger in a store's folder."""
    return f"sqlite://{folder.absolute() / FILE_NAME}"


def path_of(url: str) -> Path:
    """The file of a SQLite address."""
    return Path(unquote(urlsplit(url).path))


def wrong_address(url: str) -> str | None:
    """What is wrong with an address, with the remedy; None if nothing is. It is not repeated: it may hold a secret."""
    try:
        parts = urlsplit(url)
        password = parts.password or parse_qs(parts.query).get("password")
    except ValueError:
        return f"this is no address. {REMEDY}"
    if parts.scheme in POSTGRES:
        return "a password does not belong into a file. Leave it out and set PGPASSWORD." if password else None
    if parts.scheme == "sqlite":
        sound = not parts.netloc and parts.path.startswith("/") and len(parts.path) > 1
        return None if sound else f"the path of a SQLite ledger must be absolute. {REMEDY}"
    return None if url == "memory:" else f"a ledger cannot be kept there. {REMEDY}"
