"""Answering queries: selection, batching, residency and what is counted, without a word of HTTP."""
