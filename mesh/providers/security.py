"""Where a call may go and with which secret: plain HTTP is for this machine only, keys come from the environment."""

import ipaddress
import os
import ssl
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from mesh.catalogue import Endpoint
from mesh.errors import ProviderError
from mesh.vocabulary import AttemptStatus, Cause

_SECRET_HEADERS: Final = frozenset(
    {"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key", "x-goog-api-key"}
)


def check_endpoint(endpoint: Endpoint) -> str | None:
    """None if calls may be sent to this endpoint, else one line that says why not. Sends nothing, reads no secret."""
    fault = _address_fault(endpoint.base_url, endpoint.insecure) or _header_fault(endpoint)
    if fault is None and endpoint.ca_file is not None:
        fault = _ca_fault(endpoint.ca_file)
    return None if fault is None else f"Endpoint {endpoint.name!r}: {fault}"


def check_key(endpoint: Endpoint) -> str | None:
    """None if the endpoint needs no key or its key is there, else one line that names the variable, never its value."""
    variable = endpoint.api_key_env
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        return f"Endpoint {endpoint.name!r}: the environment variable {variable} holds no key. Set it and start again."
    if not (key.isascii() and key.isprintable()):
        return f"Endpoint {endpoint.name!r}: the key in {variable} has characters that no HTTP header can carry."
    return None


def secret(endpoint: Endpoint) -> str | None:
    """The key of a call, read anew each time; None for an endpoint without a key.

    Raises:
        ProviderError: UNAVAILABLE / UPSTREAM_AUTH, the key is missing or cannot be sent; nothing was sent.
    """
    if endpoint.api_key_env is None:
        return None
    if (fault := check_key(endpoint)) is not None:
        raise ProviderError(AttemptStatus.UNAVAILABLE, Cause.UPSTREAM_AUTH, fault)
    return os.environ[endpoint.api_key_env].strip()


@lru_cache(maxsize=64)
def private_ca(ca_file: str) -> ssl.SSLContext:
    """A context that trusts this CA alone, and verifies certificates and host names.

    Raises:
        OSError: the file cannot be read, or holds no certificate.
    """
    return ssl.create_default_context(cafile=ca_file)


@lru_cache(maxsize=256)
def _address_fault(base_url: str, insecure: bool) -> str | None:  # noqa: FBT001 - a cache key, not an option
    try:
        parts = urlsplit(base_url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        return f"base_url {base_url!r} is no URL ({error})."
    if parts.scheme not in {"http", "https"} or not host:
        return f"base_url {base_url!r} must look like https://host/v1."
    if parts.username is not None or parts.query or parts.fragment:
        return "base_url may hold no user, password, query or fragment: secrets come from the environment."
    if parts.scheme == "http" and not insecure and not _is_loopback(host):
        return (
            f"base_url is plain http to {host!r}, which is not this machine, so prompts and keys could be read on the "
            "way. Use https, or set insecure = true if the network between is yours."
        )
    return None


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _header_fault(endpoint: Endpoint) -> str | None:
    for name, value in endpoint.headers.items():
        if name.lower() in _SECRET_HEADERS:
            return f"the header {name!r} carries a secret. Put it into the environment and name it in api_key_env."
        if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
            return f"the header {name!r} has characters that HTTP cannot carry."
    return None


def _ca_fault(ca_file: str) -> str | None:
    try:
        private_ca(ca_file)
    except OSError as error:
        return f"ca_file {ca_file!r} cannot be loaded ({error.strerror or type(error).__name__})."
    return None
