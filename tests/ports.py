"""Ports for servers of a test or a benchmark."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_ports_in_a_row(count: int) -> int:
    """The first of so many ports that nobody listens on now, below those that connections get: a client that tries to
    reach a server that is away must not be given its port."""
    for port in random.sample(range(20_000, 32_000, count), 1000):
        with ExitStack() as stack:
            try:
                for number in range(port, port + count):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            except OSError:
                continue
            return port
    raise RuntimeError(f"no {count} ports in a row are free between 20000 and 32000")
