"""Inference behind the queue: requests to replicas, answers back to clients."""

from services.gateway.inference.service import InferenceGateway
from services.gateway.inference.shortcut import Shortcut

__all__ = ["InferenceGateway", "Shortcut"]
