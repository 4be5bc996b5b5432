"""Turns in PostgreSQL, for a cluster. The server's clock tells how old they are.

A turn that a crash of the server loses makes one conversation change its tier: so no commit waits for the disk.
"""

from typing import Final

from mesh.store.postgres_pool import Pool
from mesh.store.postgres_tables import PostgresTables

NAME: Final = "turns"

MIGRATIONS: Final = (
    """
CREATE TABLE turn (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    request_id text COLLATE "C" NOT NULL UNIQUE,
    tenant text COLLATE "C" NOT NULL,
    session text COLLATE "C",
    "user" text COLLATE "C",
    tier text COLLATE "C",
    input_tokens bigint NOT NULL,
    output_tokens bigint NOT NULL,
    cached_tokens bigint NOT NULL,
    print bytea NOT NULL,
    at_us bigint NOT NULL
);
CREATE INDEX turn_session ON turn (tenant, session, at_us) WHERE session IS NOT NULL;
CREATE INDEX turn_user ON turn (tenant, "user", at_us) WHERE "user" IS NOT NULL;
CREATE INDEX turn_age ON turn (at_us);
""",
)


def postgres_turns(pool: Pool) -> PostgresTables:
    """The table of turns. Raises as `PostgresTables`."""
    return PostgresTables(pool, NAME, MIGRATIONS, durable=False)
