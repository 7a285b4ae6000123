"""Serving: the right variant of a multi-task model for each query's tasks, latency and accuracy (MTLsys)."""
