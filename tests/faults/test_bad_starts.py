"""Servers that are not there when the services start, or not for them: who waits says what for, who cannot go on says
why, in a sentence, and ends."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping

import pytest

from tests.e2e.backing_servers import SERVERS
from tests.e2e.cluster import SERVICES, Cluster
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
ALL = ("registry", "scheduler", "gateway", "trainer", "inference")
STORING = ("registry", "gateway", "trainer", "inference")


def waits_for(cluster: Cluster, name: str, server: str) -> Mapping[str, str]:
    """What a process says once it says that this server is missing."""
    word = REPLIES.get(name, "") if server == "replies" else server

    def said() -> Mapping[str, str]:
        missing = cluster.missing(name) or {}
        return missing if word in missing else {}

    return eventually(said, 40, f"{name} says that it waits for {word}")


def refused(starts: Mapping[str, subprocess.Popen[str]], says: str) -> None:
    """Each ends with exit code 2 and one sentence besides its log."""
    for name, start in starts.items():
        _, said = start.communicate(timeout=90)
        assert start.returncode == 2, (name, said)
        (sentence,) = [line for line in said.splitlines() if not line.startswith("{")]
        assert sentence.startswith("llmos: "), (name, said)
        assert says in sentence, (name, said)
        assert "Traceback" not in said, (name, said)


def test_all_end_with_a_sentence_where_nobody_makes_topics_and_bucket(cluster: Cluster) -> None:
    starts = {name: cluster.one_more(name, LLMOS_INIT_TIMEOUT_S="1") for name in ALL}
    refused(starts, "`llmos admin init` makes")


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


def test_a_wrong_password_of_the_database_ends_the_start_with_a_sentence(cluster: Cluster) -> None:
    urls = {name: cluster.environment(name)["LLMOS_DB_URL"] for name in ("registry", "scheduler", "gateway")}
    wrong = {name: url.replace("-secret@", "-guess@") for name, url in urls.items()}
    refused({name: cluster.one_more(name, LLMOS_DB_URL=url) for name, url in wrong.items()}, "LLMOS_DB_URL: the server")


def test_wrong_keys_of_the_store_end_the_start_with_a_sentence(cluster: Cluster) -> None:
    starts = {name: cluster.one_more(name, LLMOS_S3_SECRET_KEY="guess", LLMOS_NODE="locked-out") for name in STORING}
    refused(starts, "LLMOS_S3_ACCESS_KEY, LLMOS_S3_SECRET_KEY: the S3 store refuses")


def test_a_bucket_that_nobody_made_ends_the_start_with_a_sentence(cluster: Cluster) -> None:
    settings = {"LLMOS_INIT_TIMEOUT_S": "1", "LLMOS_NODE": "lost"}
    url = cluster.environment("registry")["LLMOS_STORE_URL"]
    starts = {name: cluster.one_more(name, LLMOS_STORE_URL=f"{url}x", **settings) for name in STORING}
    refused(starts, "has no bucket 'llmosx': `llmos admin init` makes it")


def test_a_wrong_password_of_valkey_ends_the_start_of_who_needs_it(cluster: Cluster) -> None:
    url = cluster.environment("gateway")["LLMOS_REDIS_URL"].replace("redis://", "redis://someone:guess@")
    starts = {name: cluster.one_more(name, LLMOS_REDIS_URL=url, LLMOS_NODE="locked-out") for name in REPLIES}
    refused(starts, "LLMOS_REDIS_URL: the server refuses")


@pytest.mark.parametrize("role", ["trainer", "inference"])
def test_a_second_machine_of_one_name_is_refused_and_the_first_goes_on(role: str, cluster: Cluster) -> None:
    pid = cluster.pid_of(role)
    refused({role: cluster.one_more(role)}, "runs already, on another machine; set LLMOS_NODE")
    with cluster.client() as client:
        assert client.wait_job(client.submit_job("probe", output=f"beside-{role}")["id"])["status"] == "succeeded"
    assert cluster.pid_of(role) == pid
    assert cluster.processes[role].poll() is None


@pytest.mark.parametrize("role", ["trainer", "inference"])
def test_of_two_machines_of_one_name_that_start_at_once_one_is_refused(role: str, cluster: Cluster) -> None:
    twins = [cluster.one_more(role, LLMOS_NODE="twin") for _ in range(2)]
    ended = eventually(lambda: next((twin for twin in twins if twin.poll() is not None), None), 60, "one ends")
    refused({role: ended}, "runs already, on another machine; set LLMOS_NODE")
    (other,) = [twin for twin in twins if twin is not ended]
    other.terminate()
    other.communicate(timeout=60)
    assert other.returncode == 0
