"""What is wrong with the servers, as a sentence that names them: the library's own words are for its makers."""

from __future__ import annotations

from kafka.errors import KafkaConnectionError, KafkaTimeoutError, NodeNotReadyError, RetriableError

from shared.kafka.address import Address

MOST_CHARS = 200
SILENT = (KafkaTimeoutError, KafkaConnectionError, NodeNotReadyError, OSError)


class NoAnswer(KafkaTimeoutError):  # type: ignore[misc]
    """No server could be reached."""

    def __init__(self, address: Address, why: Exception | None = None) -> None:
        behind = f" ({str(why).partition(': ')[2] or why})" if why else ""
        super().__init__(f"no Kafka broker answers at {address}{behind}"[:MOST_CHARS])

    def __str__(self) -> str:
        return str(self.args[0])


def trouble(url: str, error: Exception) -> str:
    """The sentence for what the library raised."""
    address = Address.parse(url)
    if isinstance(error, NoAnswer):
        return str(error)
    if isinstance(error, SILENT):
        return str(NoAnswer(address))
    if isinstance(error, RetriableError):
        return f"the Kafka at {address} does not serve us just now ({type(error).__name__})"
    return f"the Kafka at {address} does not do as asked: {error}".partition("\n")[0][:MOST_CHARS]
