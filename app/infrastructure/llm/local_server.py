"""The embedded model's server: a child process that speaks the OpenAI format on the loopback interface.

It is started and watched by :mod:`app.infrastructure.llm.local_model` and uses nothing of the rest of the project::

    python app/infrastructure/llm/local_server.py --model PATH --port P [--alias NAME] [--context N] [--slots N]

- Standard output gets one line, the port it listens on, once the model is loaded.
- Standard input is its lifeline: the process ends when that closes. The kernel closes it when the parent dies, however
  it dies, so no server outlives its parent. Nothing is ever written to it.
- Standard error gets errors only; they hold no prompts.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

LOG_ERRORS_ONLY = 1
"""llama.cpp's own scale. From 2 (warnings) on it quotes pieces of requests it cannot read."""

HTTP_THREADS = 64
"""Each waiting or idle connection holds one; with the library's default (13) the health check waits behind requests."""

MAX_TOKENS = 1024
"""Answers that ask for no limit end here: a small model may repeat itself for ever."""

SECONDS_BETWEEN_PINGS = 10
"""A long prompt takes more than a minute on one core; comments in the stream show meanwhile that it is being read."""


def threads() -> int:
    """How many threads compute: one core is left to everybody else, and beyond eight this model gains nothing."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores - 1))


def start_server(model: Path, *, port: int, alias: str, context: int, slots: int) -> Any:
    """Load the model and serve it on ``127.0.0.1`` by threads of the library's own.

    Args:
        model: the weights, a GGUF file.
        port: 0 for one that is free.
        alias: the name answers give the model.
        context: tokens of one conversation, prompt and answer together.
        slots: answers at once; further requests wait.

    Returns:
        The running server, an ``xllamacpp.Server``; it serves for as long as it is referred to.

    Raises:
        RuntimeError: the weights cannot be loaded or the port is taken.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.model_alias = {alias}
    params.hostnames = ["127.0.0.1"]
    params.port = port
    params.n_parallel = slots
    params.n_ctx = context * slots
    params.n_predict = MAX_TOKENS
    # Small batches: a long prompt holds the other answers up for one batch at a time, a second on one core.
    params.n_batch = params.n_ubatch = 128
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    params.n_threads_http = HTTP_THREADS
    params.sse_ping_interval = SECONDS_BETWEEN_PINGS
    # Finished conversations stay cached in their slots; a further cache may grow to 8 GiB unless it is off.
    params.cache_ram_mib = 0
    params.cache_idle_slots = False
    # Memory is set by the two arguments above, not fitted to the machine.
    params.fit_params = False
    params.warmup = False
    params.ui = False
    # Text is passed on as it was generated, whatever markup a small model makes up.
    params.force_pure_content_parser = True
    params.cors_origins = ""
    params.verbosity = LOG_ERRORS_ONLY
    return xllamacpp.Server(params)


def main() -> None:
    """Serve until standard input closes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True, help="0 for one that is free")
    parser.add_argument("--alias", default="local")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=4)
    args = parser.parse_args()

    # The line with the port is all that standard output gets, whatever the library may print.
    report = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    server = start_server(args.model, port=args.port, alias=args.alias, context=args.context, slots=args.slots)
    os.write(report, server.listening_address.rpartition(":")[2].encode() + b"\n")
    os.close(report)

    sys.stdin.buffer.read()
    # The library's destructor would wait for running answers; nobody is left to read them.
    os._exit(0)


if __name__ == "__main__":
    main()
