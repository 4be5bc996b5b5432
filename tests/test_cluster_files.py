"""The files for clusters are valid by Ray's own rules, and set the same flags as a `serve run` on one machine."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.serve.schema import ServeDeploySchema

from mesh.deploy import SeveralArgs
from mesh.serve.flags import AUTH_FLAG, BINARY_FLAG, SERVING

ROOT = Path(__file__).parent.parent
CLUSTER = yaml.safe_load((ROOT / "ray_cluster.yaml").read_text())
SERVICE = yaml.safe_load((ROOT / "deploy" / "rayservice.yaml").read_text())
DEPLOYED = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text())

# on a cluster, balancers outside must notice a replica's end too
LONGER = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30"}


def test_the_cluster_file_fits_ray_s_schema():
    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    jsonschema.validate(CLUSTER, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(CLUSTER | {"head_node": {}}, schema)


def test_the_cluster_launcher_takes_the_cluster_file():
    validate_config(prepare_config(CLUSTER))


def test_each_worker_type_has_resources_that_a_placed_tier_can_ask_for():
    types = CLUSTER["available_node_types"]
    workers = {name: one for name, one in types.items() if name != CLUSTER["head_node_type"]}
    asked = [set(one["resources"]) for one in workers.values()]
    assert all(any(name.startswith("region_") for name in names) for names in asked)
    assert any("accelerator_l4" in names for names in asked)
    groups = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    offered = [set(json.loads(json.loads(group["rayStartParams"]["resources"].strip("'")))) for group in groups]
    assert offered == asked


@pytest.mark.parametrize("which", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_the_start_commands_set_our_flags_before_ray_starts(which):
    command = next(line for line in CLUSTER[which] if "ray start" in line)
    flags, _, started = command.partition("&& ulimit")
    assert "ray start" in started
    found = dict(re.findall(r"(RAY_\w+)=(\S+)", flags))
    assert {name: found.get(name) for name in SERVING} == {**SERVING, **LONGER}
    assert found[AUTH_FLAG] == "token"
    assert "python -m mesh.serve.haproxy" in flags.partition(BINARY_FLAG)[2]


def containers() -> Iterator[dict[str, Any]]:
    cluster = SERVICE["spec"]["rayClusterConfig"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        yield from group["template"]["spec"]["containers"]


def test_each_container_sets_our_flags_and_writes_the_haproxy_script():
    for container in containers():
        found = {one["name"]: one.get("value") for one in container["env"]}
        assert {name: found.get(name) for name in SERVING} == {**SERVING, **LONGER}
        assert found[AUTH_FLAG] == "token"
        assert "RAY_AUTH_TOKEN" in found
        assert found[BINARY_FLAG] == "/home/ray/.cache/mesh/haproxy/haproxy"
        assert container["lifecycle"]["postStart"]["exec"]["command"] == ["python", "-m", "mesh.serve.haproxy"]


@pytest.mark.parametrize("config", [DEPLOYED, yaml.safe_load(SERVICE["spec"]["serveConfigV2"])])
def test_the_serve_configs_name_an_app_whose_arguments_are_taken(config):
    schema = ServeDeploySchema.model_validate(config)
    [app] = schema.applications
    assert app.import_path == "mesh.serve:app"
    args = SeveralArgs.model_validate(app.args)
    assert args.host == config["http_options"]["host"]
    assert args.port == config["http_options"]["port"]
