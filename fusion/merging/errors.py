"""What users of merging are told when something of theirs is wrong."""


class MergeError(ValueError):
    """Networks, data or options do not fit: the message says what was expected, what came, whose it is and what to do."""
