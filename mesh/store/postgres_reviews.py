"""Reviews in PostgreSQL, for a cluster: replicas on any number of nodes share them."""

from typing import Final

from mesh.store.postgres_pool import Pool
from mesh.store.postgres_tables import PostgresTables
from mesh.store.sql_reviews import SCHEMA

NAME: Final = "reviews"
MIGRATIONS: Final = (";\n".join(SCHEMA).format(text='text COLLATE "C"', integer="bigint"),)


def postgres_reviews(pool: Pool) -> PostgresTables:
    """The table of reviews. Raises as `PostgresTables`."""
    return PostgresTables(pool, NAME, MIGRATIONS)
