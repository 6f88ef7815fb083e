"""Servers that are not there when the services start, or not for them: who waits says what for, who cannot go on says
why, in a sentence, and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest

from tests.e2e.backing_servers import SERVERS
from tests.e2e.cluster import SERVICES, Cluster
from tests.e2e.systems import new_cluster
from tests.waiting import eventually

pytestmark = pytest.mark.timeout(240)

NEEDED = {
    "registry": {"bus", "store", "database"},
    "scheduler": {"bus", "database"},
    "standby": {"bus", "database"},
    "gateway": {"bus", "store", "database"},
    "trainer": {"bus", "store"},
    "inference": {"bus", "store"},
}
"""What each names in `/readyz` while it is away. Doorbells are only hints; where answers are missing says `replies`."""
REPLIES = {"gateway": "inference", "inference": "replies"}
"""By which name those who need Valkey say that it is away."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with new_cluster() as cluster:
        yield cluster


def waits_for(cluster: Cluster, name: str, server: str) -> Mapping[str, str]:
    """What a process says once it says that this server is missing."""
    word = REPLIES.get(name, "") if server == "replies" else server

    def said() -> Mapping[str, str]:
        missing = cluster.missing(name) or {}
        return missing if word in missing else {}

    return eventually(said, 40, f"{name} says that it waits for {word}")


def test_all_come_up_by_themselves_on_servers_that_come_later_and_empty(cluster: Cluster) -> None:
    """As when everything is started at once: the services first, then the servers, and topics and bucket last."""
    cluster.servers.kill(*SERVERS)
    cluster.start()
    for name, servers in NEEDED.items():
        for server in servers:
            waits_for(cluster, name, server)
    pids = {name: cluster.pid_of(name) for name in SERVICES}
    cluster.servers.start()
    cluster.migrate()
    cluster.wait_until_ready()
    with cluster.client() as client:
        assert client.wait_job(client.submit_job("probe", output="late")["id"])["status"] == "succeeded"
    assert {name: cluster.pid_of(name) for name in SERVICES} == pids


@pytest.mark.parametrize("server", SERVERS)
def test_all_wait_for_a_server_that_is_not_there_and_say_so(server: str, cluster: Cluster) -> None:
    waiting = [name for name in SERVICES if server in NEEDED[name] or (server == "replies" and name in REPLIES)]
    cluster.stop(waiting)
    cluster.servers.kill(server)
    cluster.start()
    for name in waiting:
        said = waits_for(cluster, name, server)
        assert all(len(reason.splitlines()) == 1 and len(reason) > 10 for reason in said.values()), said
    pids = {name: cluster.pid_of(name) for name in SERVICES}
    cluster.servers.start()
    cluster.wait_until_ready()
    with cluster.client() as client:
        assert client.wait_job(client.submit_job("probe", output=f"after-{server}")["id"])["status"] == "succeeded"
    assert {name: cluster.pid_of(name) for name in SERVICES} == pids
    assert all(process.poll() is None for process in cluster.processes.values())
