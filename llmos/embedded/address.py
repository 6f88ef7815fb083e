"""Where the gateway listens, and whether it serves there."""

from __future__ import annotations

import errno
import socket

import httpx

from llmos.embedded.errors import UpError


def url_of(host: str, port: int) -> str:
    """How this machine reaches what listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def check_port(host: str, port: int) -> None:
    """Raises UpError where nothing can listen there."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise UpError(f"{host!r} is no address to listen on: {error.strerror}. Give another with --host.") from error
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            option = "address with --host" if error.errno == errno.EADDRNOTAVAIL else "port with --port"
            raise UpError(f"cannot listen on {host}:{port}: {error.strerror}. Give another {option}.") from error


def not_ready(url: str) -> str | None:
    """None when the gateway can serve; else what is missing, empty while nothing answers."""
    try:
        answer = httpx.get(f"{url}/readyz", timeout=2, trust_env=False)
    except httpx.TransportError:
        return ""
    if answer.status_code == httpx.codes.OK:
        return None
    try:
        missing = answer.json()["missing"].items()
    except (ValueError, KeyError, AttributeError, TypeError):
        return f"it answers with status {answer.status_code}"
    return "; ".join(f"{part}: {reason}" for part, reason in missing)
