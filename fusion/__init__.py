"""What happens to finished models: sharing, stacking and merging (none of it is in this version yet)."""
