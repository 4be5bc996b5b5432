"""Jobs in PostgreSQL, for a cluster: replicas on any number of nodes share one queue."""

from typing import Final

from mesh.store.postgres_pool import Pool
from mesh.store.postgres_tables import PostgresTables

NAME: Final = "jobs"
WRITING: Final = 0x6D6A6F62  # an advisory lock

MIGRATIONS: Final = (
    """
CREATE TABLE job (
    id text COLLATE "C" PRIMARY KEY,
    tenant text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL,
    created_us bigint NOT NULL,
    ready_us bigint NOT NULL,
    begin_by_us bigint NOT NULL,
    expires_us bigint NOT NULL,
    started_us bigint NOT NULL,
    ended_us bigint NOT NULL,
    owner text COLLATE "C" NOT NULL,
    epoch bigint NOT NULL,
    lease_until_us bigint NOT NULL,
    lost bigint NOT NULL,
    status bigint NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    told bigint NOT NULL
);
CREATE INDEX job_list ON job (created_us, id);
CREATE INDEX job_turn ON job (state, tenant, created_us, id);
CREATE INDEX job_tenant ON job (tenant, started_us);
CREATE INDEX job_end ON job (expires_us);
CREATE INDEX job_untold ON job (ended_us) WHERE told <> 1;
CREATE TABLE busy (owner text COLLATE "C" PRIMARY KEY, at_us bigint NOT NULL);

CREATE FUNCTION job_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint $$;
""",
)


def postgres_jobs(pool: Pool) -> PostgresTables:
    """The tables of jobs. Raises as `PostgresTables`."""
    return PostgresTables(pool, NAME, MIGRATIONS, lock=WRITING, now="SELECT job_now()")
