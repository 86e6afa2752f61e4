"""Watch a run while it trains: hooks, a schedule, a time budget."""

from theodolite.monitor.monitor import Monitor

__all__ = ["Monitor"]
