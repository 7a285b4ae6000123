"""Pruning-aware merging: one network in which every subset of tasks is cheap."""
