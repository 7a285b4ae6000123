"""Variants of a multi-task network: built, profiled, listed and selected from the command line and from Python."""
