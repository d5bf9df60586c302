"""Programs that try to get out of a sandbox, to wear the machine out, or to pass without solving anything.

``make hostile`` runs all of them many times, on every backend that works here; the suite runs each once.
"""
