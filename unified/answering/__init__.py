"""From models of one architecture to one module that answers for all of them."""
