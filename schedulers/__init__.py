"""Which unit trains next: policies as pure functions over frozen snapshots."""
