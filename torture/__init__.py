"""Drops, kills and restarts at random instants, and a check of what was promised: ``python -m torture --help``."""
