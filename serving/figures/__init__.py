"""The figures of MTLsys (3 to 8), each as a picture and the table that it was drawn from."""
