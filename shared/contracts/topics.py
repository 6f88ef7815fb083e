"""The topics of the durable bus: what is kept, for how long, and whose key orders it."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True)
class Topic:
    """One topic. `retention=None` keeps the latest message of every key for ever (compacted)."""

    name: str
    retention: timedelta | None
    partitions: int = 12
    compacted: bool = False

    @property
    def dlq(self) -> "Topic":
        """Where a message goes that can never be handled."""
        return Topic(f"{self.name}.dlq", timedelta(days=30), self.partitions)


def _log(name: str, **retention: float) -> Topic:
    return Topic(name, timedelta(**retention))


def _table(name: str, retention: timedelta | None = None) -> Topic:
    return Topic(name, retention, compacted=True)


JOBS_COMMANDS = _log("jobs.commands", days=7)
JOBS_EVENTS = _log("jobs.events", days=7)
JOBS_LOGS = _log("jobs.logs", days=1)
JOBS_STATE = _table("jobs.state")
ATTEMPTS_DESIRED = _table("attempts.desired")
REGISTRY_COMMANDS = _log("registry.commands", days=7)
REGISTRY_EVENTS = _log("registry.events", days=7)
REGISTRY_STATE = _table("registry.state")
DEPLOYMENTS_COMMANDS = _log("deployments.commands", days=7)
DEPLOYMENTS_DESIRED = _table("deployments.desired")
DEPLOYMENTS_STATUS = _table("deployments.status")
# Compacted as well: whoever starts wants each node's last word at once, not ten minutes of them.
NODES_HEARTBEATS = _table("nodes.heartbeats", timedelta(minutes=10))

TOPICS = (
    JOBS_COMMANDS,
    JOBS_EVENTS,
    JOBS_LOGS,
    JOBS_STATE,
    ATTEMPTS_DESIRED,
    REGISTRY_COMMANDS,
    REGISTRY_EVENTS,
    REGISTRY_STATE,
    DEPLOYMENTS_COMMANDS,
    DEPLOYMENTS_DESIRED,
    DEPLOYMENTS_STATUS,
    NODES_HEARTBEATS,
)
