"""What a model is: blocks, adapters and the tree that they make."""
