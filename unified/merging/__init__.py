"""Merging finished jobs into one network that is cheap for every subset of their tasks: from results to files."""
