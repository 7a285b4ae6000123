"""Modules as graphs of layers: read, cut to tasks, pruned, written and read back."""
