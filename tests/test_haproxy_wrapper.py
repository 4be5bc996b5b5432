"""The script that mends the configuration of Serve's HAProxy: tried on what this version of Serve writes."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from mesh.serve.haproxy import BIND_ENV, ONLY_ENV, STATS_ENV, is_wrapper, real_binary, write_wrapper


def written(folder: Path, host: str = "127.0.0.1") -> Path:
    """A configuration as Serve writes it for one application with one replica."""
    config = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_socket_path=str(folder / "metrics.sock"),
        http_options=HTTPOptions(host=host, port=18_123),
    )
    servers = [ServerConfig("one", "127.0.0.1", 30_000)]
    backend = BackendConfig(name="http-default", path_prefix="/", app_name="default", servers=servers)
    api = HAProxyApi(config, {"http-default": backend}, str(folder / "haproxy.cfg"))
    api._generate_config_file_internal()
    return folder / "haproxy.cfg"


def mended(folder: Path, config: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script as Serve does, with `-c`: the real HAProxy then checks the file instead of serving."""
    script = write_wrapper(folder / "with spaces")
    command = [str(script), "-db", "-f", str(config), "-dR", "-c"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | env)


def lines(config: Path, pattern: str) -> list[str]:
    return [line.strip() for line in config.read_text().splitlines() if re.search(pattern, line)]


def test_statistics_and_metrics_move_to_loopback_and_the_headers_go(tmp_path):
    config = written(tmp_path)
    assert lines(config, r"^ *bind ") == ["bind :9101", "bind 127.0.0.1:18123", "bind *:8404"]
    ran = mended(tmp_path, config)
    assert ran.returncode == 0, ran.stderr
    assert lines(config, r"^ *bind ") == ["bind 127.0.0.1:9101", "bind 127.0.0.1:18123", "bind 127.0.0.1:8404"]
    assert lines(config, "del-header x-request-[td]") == [
        "http-request del-header x-request-timeout-seconds",
        "http-request del-header x-request-disconnect-disabled",
    ]
    assert " mode 600 " in lines(config, "stats socket")[0]
    assert lines(config, "return status 404")
    assert not lines(config, "set-header x-request-d"), "other applications may count on Serve's looking"


def test_headers_that_serve_cannot_decode_or_should_not_read_go_too(tmp_path):
    config = written(tmp_path)
    assert mended(tmp_path, config).returncode == 0
    found = " ".join(lines(config, "del-header"))
    for name in ("x-request-id", "x-session-id", "traceparent", "tracestate"):
        assert f"del-header {name} if {{ req.fhdr({name}) -m reg [^[:print:]] }}" in found
    assert "del-header serve_multiplexed_model_id" in found


def test_a_reload_starts_from_a_file_that_serve_wrote_anew(tmp_path):
    for _ in range(2):
        config = written(tmp_path)
        assert mended(tmp_path, config).returncode == 0
    assert len(lines(config, "del-header x-request-[td]")) == 2


def test_where_we_are_alone_serve_does_not_look_who_leaves_and_a_missing_application_is_503_and_not_404(tmp_path):
    config = written(tmp_path)
    ran = mended(tmp_path, config, **{ONLY_ENV: "1"})
    assert ran.returncode == 0, ran.stderr
    assert lines(config, "set-header x-request-d") == ["http-request set-header x-request-disconnect-disabled ?1"]
    assert not lines(config, "return status 404")
    assert len(lines(config, r"return status 503 content-type application/json")) == 2


def test_haproxy_alone_takes_the_public_address_while_replicas_stay_on_loopback(tmp_path):
    config = written(tmp_path)
    assert mended(tmp_path, config, **{BIND_ENV: "192.0.2.7", STATS_ENV: "127.0.0.2"}).returncode == 0
    assert lines(config, r"^ *bind ") == ["bind 127.0.0.2:9101", "bind 192.0.2.7:18123", "bind 127.0.0.2:8404"]


def test_the_public_address_of_a_cluster_is_left_as_it_is(tmp_path):
    config = written(tmp_path, host="0.0.0.0")  # noqa: S104
    assert mended(tmp_path, config).returncode == 0
    assert "bind *:18123" in lines(config, r"^ *bind ")


@pytest.mark.parametrize(
    ("pattern", "replacement", "said"),
    [
        ("listen stats", "listen statistics", "the statistics and metrics ports"),
        ("frontend http_frontend", "frontend web", "the public address"),
        (" mode 666 ", " mode 0666 ", "the admin socket"),
    ],
)
def test_a_template_that_we_do_not_know_is_refused_and_haproxy_does_not_start(tmp_path, pattern, replacement, said):
    config = written(tmp_path)
    text = config.read_text()
    config.write_text(text.replace(pattern, replacement))
    ran = mended(tmp_path, config)
    assert ran.returncode != 0
    assert said in ran.stderr
    assert "see mesh/serve/haproxy.py" in ran.stderr
    assert config.read_text() == text.replace(pattern, replacement)


def test_haproxy_s_own_errors_have_openai_s_shape(tmp_path):
    config = written(tmp_path)
    mended(tmp_path, config)
    found = [line.split(" ", 2) for line in lines(config, "^ *errorfile")]
    assert [status for _, status, _ in found] == ["400", "408", "502", "503", "504"]
    for _, status, path in found:
        head, _, body = Path(path.strip('"')).read_bytes().decode().partition("\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert f"content-length: {len(body)}" in head
        assert '"error": {"message":' in body
        assert ("x-should-retry: false" in head) == (status != "503")


def test_the_script_is_told_from_the_real_binary(tmp_path, monkeypatch):
    script = write_wrapper(tmp_path)
    assert is_wrapper(str(script))
    assert script.stat().st_mode & 0o777 == 0o700
    found = real_binary()
    assert found is not None
    assert not is_wrapper(found)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", str(script))
    assert real_binary() == found
