"""A real Kafka broker that lets in only who has a password, in clear text and over TLS."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kafka.admin import (
    ACL,
    ACLFilter,
    ACLOperation,
    ACLPermissionType,
    ResourcePattern,
    ResourceType,
    UserScramCredentialUpsertion,
)

from shared.kafka.clients import admin
from tests.kafka_server import KafkaServer, own_kafka
from tests.waiting import eventually

USER, PASSWORD = "me", "s3cret:/?%"
PROTOCOLS = ("PLAINTEXT", "SASL_PLAINTEXT", "SASL_SSL")
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
PLAIN = f'org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'
SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required;"


@dataclass(frozen=True)
class GuardedKafka:
    """`server` is the same broker as who keeps it reaches it. `ca` vouches for its certificate."""

    server: KafkaServer
    ca: Path
    port: int

    def url(self, mechanism: str, *, tls: bool, password: str = PASSWORD, ca: bool = True) -> str:
        login = f"{quote(USER, safe='')}:{quote(password, safe='')}"
        trust = f"&ca={self.ca}" if tls and ca else ""
        scheme, port = ("kafkas", self.port + 1) if tls else ("kafka", self.port)
        return f"{scheme}://{login}@127.0.0.1:{port}?sasl={mechanism}{trust}"

    def allow(self, kind: ResourceType, name: str, *rights: ACLOperation) -> None:
        """From now on USER may do this with the topic or group, and nothing else with it. Before, all may do all."""
        where = ResourcePattern(kind, name)
        acls = [ACL(f"User:{USER}", "*", right, ACLPermissionType.ALLOW, where) for right in rights]
        assert not self.server.ask(lambda client: client.create_acls(acls))["failed"]
        mine = ACLFilter(None, None, ACLOperation.ANY, ACLPermissionType.ANY, where)
        eventually(lambda: len(self.server.ask(lambda client: client.describe_acls(mine)[0])) >= len(acls))


@contextmanager
def guarded_kafka() -> Iterator[GuardedKafka]:
    """Skips where none can be started."""
    server = own_kafka(ports=4)
    own = server.port
    ca = _certify(server.folder)
    ports = dict(zip(PROTOCOLS, (own, own + 2, own + 3), strict=True))
    listeners = ",".join(f"{name}://127.0.0.1:{port}" for name, port in ports.items())
    server.extra = f"""
listeners={listeners},CONTROLLER://127.0.0.1:{own + 1}
advertised.listeners={listeners}
listener.security.protocol.map={",".join(f"{name}:{name}" for name in PROTOCOLS)},CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms={",".join(MECHANISMS)}
ssl.keystore.type=PKCS12
ssl.keystore.location={server.folder}/broker.p12
ssl.keystore.password=changeit
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
"""
    for listener in ("sasl_plaintext", "sasl_ssl"):
        for mechanism in MECHANISMS:
            module = PLAIN if mechanism == "PLAIN" else SCRAM
            server.extra += f"listener.name.{listener}.{mechanism.lower()}.sasl.jaas.config={module}\n"
    try:
        server.start()
        for mechanism in MECHANISMS[1:]:
            with admin(server.url, "test") as client:
                scram = UserScramCredentialUpsertion(USER, mechanism, PASSWORD)
                assert client.alter_user_scram_credentials([scram]) == {USER: None}
        yield GuardedKafka(server, ca, own + 2)
    finally:
        server.end()


def _certify(folder: Path) -> Path:
    """A key and a certificate for 127.0.0.1, by the tool that comes with Java. Returns the certificate's file."""
    keytool = shutil.which("keytool")
    assert keytool is not None, "keytool comes with Java"
    store = ["-keystore", str(folder / "broker.p12"), "-storetype", "PKCS12", "-storepass", "changeit"]
    named = ["-alias", "broker", "-keyalg", "RSA", "-dname", "CN=127.0.0.1", "-ext", "san=ip:127.0.0.1"]
    subprocess.run([keytool, "-genkeypair", *named, *store], check=True, capture_output=True)
    ca = folder / "ca.pem"
    subprocess.run(
        [keytool, "-exportcert", "-rfc", "-alias", "broker", "-file", str(ca), *store], check=True, capture_output=True
    )
    return ca
