"""Inference behind the queue: requests to replicas, answers back to clients."""

from services.gateway.inference.service import InferenceGateway

__all__ = ["InferenceGateway"]
