"""Benchmarks: the same work done by plain PyTorch and by unified, measured in one run."""
