"""Take one finished member out of a hybrid and prove that it is whole."""
