from collections.abc import Iterator

import pytest

from tests.cluster.served import Host, hosting


@pytest.fixture(scope="session")
def served() -> Iterator[Host]:
    """`served("module:app", {"replicas": 2}, {"NAME": "value"})` gives a running `serve run`, started if need be."""
    yield from hosting()
