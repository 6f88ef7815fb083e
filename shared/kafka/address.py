"""An address of Kafka: where its servers are, and how to reach them. All of it is in one URL, as for every server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import parse_qsl, unquote

from shared.settings import AddressError, shown

DEFAULT_PORT = 9092
TLS = {"kafka": False, "kafkas": True}
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
FILES = {"ca": "ssl_cafile", "cert": "ssl_certfile", "key": "ssl_keyfile"}


@dataclass(frozen=True)
class Address:
    """`servers` are `host:port`. `options` are the client library's; a password may be among them."""

    servers: Sequence[str]
    options: Mapping[str, str | None] = field(repr=False)

    @classmethod
    def parse(cls, url: str) -> Self:
        """What is at `kafka://[user:password@]host[:port][,host[:port]]`, or with TLS at `kafkas://…`, where the files
        `?ca=` (who vouches for the servers; else the system's), `&cert=` and `&key=` (who we are) may follow.
        `?sasl=` is how the password is checked. Raises AddressError, which repeats no part of a URL that may be
        secret."""
        scheme, _, rest = url.partition("://")
        rest, _, query = rest.partition("?")
        login, at, hosts = rest.rpartition("@")
        servers = [_with_port(host) for host in hosts.rstrip("/").split(",")]
        if scheme not in TLS or not all(servers):
            raise _no_address(url, "use kafka://host:9092 or kafka://host:9092,other:9092, or kafkas://… with TLS")
        protocol = "SSL" if TLS[scheme] else "PLAINTEXT"
        asked = _query(url, query)
        mechanism = asked.pop("sasl", None)
        if asked and not TLS[scheme]:
            raise _no_address(url, f"{', '.join(asked)} only mean something with TLS, kafkas://…")
        options: dict[str, str | None] = {FILES[name]: _file(url, name, asked[name]) for name in asked}
        if at:
            user, _, password = login.partition(":")
            if not user or not password or {"/", "@"} & set(login):
                raise _no_address(
                    url, "a user and a password belong before the @, signs such as / in them written as %2F"
                )
            if mechanism not in {None, *MECHANISMS}:
                raise _no_address(url, f"sasl is one of {', '.join(MECHANISMS)}")
            protocol = f"SASL_{protocol}"
            options |= {
                "sasl_mechanism": mechanism or "PLAIN",
                "sasl_plain_username": unquote(user),
                "sasl_plain_password": unquote(password),
            }
        elif mechanism:
            raise _no_address(url, "sasl needs a user and a password, kafkas://user:password@host:9092")
        return cls(servers, {"security_protocol": protocol, **options})

    def __str__(self) -> str:
        return ",".join(self.servers)


def _query(url: str, query: str) -> dict[str, str]:
    try:
        found = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:  # its words repeat what may be the end of a password
        found = {"": ""}
    if found.keys() - FILES.keys() - {"sasl"}:
        raise _no_address(url, f"after its ? there may be {', '.join(FILES)} and sasl, each as name=value")
    return found


def _file(url: str, name: str, path: str) -> str:
    if not Path(path).is_file():
        raise _no_address(url, f"{name} names no file that is there")
    return path


def _with_port(address: str) -> str:
    """`host:port`, or nothing where the address is none."""
    host, _, port = address.strip().rpartition(":")
    if not host:
        host, port = port, str(DEFAULT_PORT)
    is_one = re.fullmatch(r"[^\s/]+", host) and port.isdecimal() and 0 < int(port) < 65536
    return f"{host}:{port}" if is_one else ""


def _no_address(url: str, why: str) -> AddressError:
    return AddressError(f"{shown(url)} is no address of Kafka: {why}")
