"""Models between their owner's own code and the forms that others accept: on the owner's side, where that code may run."""
