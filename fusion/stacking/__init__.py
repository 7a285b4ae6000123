"""Members of one architecture that step as one."""
