"""The bus on Valkey Streams.

A topic is one stream, so it has one partition. A compacted topic is a hash (the latest of each key) and a stream of
changes, written in one step. The server must write ahead and sync always (`appendonly yes`, `appendfsync always`).
"""

from shared.bus.valkey.bus import ValkeyBus

__all__ = ["ValkeyBus"]
