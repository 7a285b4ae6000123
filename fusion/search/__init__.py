"""Which parts of models to share."""
