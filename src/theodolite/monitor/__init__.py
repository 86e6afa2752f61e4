"""Watch a run while it trains: hooks, a schedule, a time budget."""
