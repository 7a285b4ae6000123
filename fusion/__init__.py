"""What happens to finished models: sharing, stacking and merging (merging is not in this version yet)."""
