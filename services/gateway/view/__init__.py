"""The read view: what the state topics say. SQL that all gateways share; memory for what changes by the second."""

from services.gateway.view.view import View

__all__ = ["View"]
