"""Sends an alert to the operator's webhook: one POST, signed with a secret that both know.

The signature is `v1=` and the hex HMAC-SHA256 of the timestamp, a point and the body, as they are sent. Whoever
receives it computes the same and compares in constant time, refuses old timestamps, and knows alerts by their id: one
whose answer was lost comes again, with the same id and body.
"""

import hashlib
import hmac
import ssl
from collections.abc import Mapping
from typing import Final

import aiohttp

from mesh.catalogue import Endpoint
from mesh.clock import Clock
from mesh.config.models import Alerts
from mesh.errors import ConfigError
from mesh.providers.security import check_endpoint, private_ca

TIMEOUT_S: Final = 10.0
LEAST_SECRET: Final = 16  # characters
ACCEPTED: Final = range(200, 300)


class Webhook:
    """One address. No redirect is followed, and no proxy taken from the environment."""

    def __init__(self, url: str, secret: str, clock: Clock, *, ca_file: str | None = None) -> None:
        self._url = url
        self._secret = secret.encode()
        self._clock = clock
        self._ca_file = ca_file

    async def send(self, alert_id: str, body: bytes) -> str | None:
        """None once it was accepted, else what went wrong, without a secret."""
        headers = signed_headers(self._secret, int(self._clock.wall().timestamp()), alert_id, body)
        tls: ssl.SSLContext | bool = True if self._ca_file is None else private_ca(self._ca_file)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(self._url, data=body, headers=headers, ssl=tls, allow_redirects=False) as reply,
            ):
                return None if reply.status in ACCEPTED else f"HTTP {reply.status}"
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return type(error).__name__


def signed_headers(secret: bytes, at_s: int, alert_id: str, body: bytes) -> dict[str, str]:
    """The headers of one delivery, at a time in seconds since 1970."""
    return {
        "content-type": "application/json",
        "user-agent": "model-mesh",
        "x-mesh-alert-id": alert_id,
        "x-mesh-timestamp": str(at_s),
        "x-mesh-signature": signature_of(secret, at_s, body),
    }


def signature_of(secret: bytes, at_s: int, body: bytes) -> str:
    """What signs a body that is sent at a time, in seconds since 1970."""
    return f"v1={hmac.new(secret, b'%d.%b' % (at_s, body), hashlib.sha256).hexdigest()}"


def webhook_of(alerts: Alerts, env: Mapping[str, str], clock: Clock) -> Webhook | None:
    """The webhook that the configuration names, if it does.

    Raises:
        ConfigError: its address cannot be used, or its secret is not there or too short.
    """
    if alerts.webhook is None or alerts.secret_env is None:
        return None
    place = Endpoint(name="alerts", base_url=alerts.webhook, insecure=alerts.insecure, ca_file=alerts.ca_file)
    if (problem := check_endpoint(place)) is not None:
        raise ConfigError("alerts.webhook", problem)
    secret = env.get(alerts.secret_env, "").strip()
    if len(secret) < LEAST_SECRET:
        problem = f"the environment variable {alerts.secret_env} holds no secret of {LEAST_SECRET} characters or more."
        raise ConfigError("alerts.secret_env", problem, "Set it to a long random text, and start again.")
    return Webhook(alerts.webhook, secret, clock, ca_file=alerts.ca_file)
