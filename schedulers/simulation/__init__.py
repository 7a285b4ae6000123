"""The same schedulers on a virtual clock: what a policy would do to a workload, without training anything."""
