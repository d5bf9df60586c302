"""Identifiers and addresses given to things of ours."""

from __future__ import annotations

import os
import secrets
import socket
import uuid


def new_event_id() -> str:
    """A ``webhook-id``: unique, and the same for every try of one event."""
    return f"evt_{uuid.uuid4().hex}"


def new_turn_id() -> str:
    """A turn id for callers that bring none."""
    return f"turn_{secrets.token_hex(12)}"


def new_submission_id() -> str:
    """A submission's id for callers that bring none."""
    return f"sub_{secrets.token_hex(12)}"


def process_name() -> str:
    """This process as an operator recognises it: ``host:pid``."""
    return f"{socket.gethostname()}:{os.getpid()}"
