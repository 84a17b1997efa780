"""What stops a run that nothing is wrong with."""


class Interrupted(Exception):
    """A person stopped the run; it is saved, and the same command continues it."""
