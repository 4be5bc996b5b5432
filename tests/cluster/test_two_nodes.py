"""Nodes as Ray itself tells them: with a second one, a store that is a file of one node is refused."""

import time
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from mesh.errors import ConfigError
from mesh.serve.nodes import must_be_shared
from tests.cluster.served import Host

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]


@pytest.fixture
def cluster(served: Host) -> Iterator[Cluster]:
    served.stop()
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_sqlite_is_refused_for_as_long_as_two_nodes_can_run_the_ingress(cluster):
    must_be_shared(None, 0.25)
    second = cluster.add_node(num_cpus=1)
    with pytest.raises(ConfigError, match="2 nodes of this cluster can run the ingress"):
        must_be_shared(None, 0.25)
    must_be_shared("postgresql://mesh@db/mesh", 0.25)
    must_be_shared(None, 2)
    cluster.remove_node(second)
    ends = time.monotonic() + 60
    while refused():
        assert time.monotonic() < ends
        time.sleep(0.2)


def refused() -> bool:
    try:
        must_be_shared(None, 0.25)
    except ConfigError:
        return True
    return False
