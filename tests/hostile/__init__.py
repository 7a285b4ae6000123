"""Hostile submissions: each is refused with its code, and nothing of it runs."""
