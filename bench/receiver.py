"""A receiver of callbacks as a process of its own: takes every POST, counts it, and says ``GET /count``.

``python -m bench.receiver`` prints its address and serves.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import uvloop
from aiohttp import web


def create_app() -> web.Application:
    """The application; ``/count`` answers ``{"posts": …, "events": …}``, the events by their different ids."""
    posts = 0
    events: set[str] = set()

    async def take(request: web.Request) -> web.Response:
        nonlocal posts
        await request.read()
        posts += 1
        events.add(request.headers.get("webhook-id", ""))
        return web.Response(status=204)

    async def count(_request: web.Request) -> web.Response:
        return web.json_response({"posts": posts, "events": len(events)})

    app = web.Application()
    app.router.add_post("/callbacks", take)
    app.router.add_get("/count", count)
    return app


async def _serve(port: int) -> None:
    runner = web.AppRunner(create_app(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGTERM; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args(arguments)
    loop = uvloop.new_event_loop()
    loop.run_until_complete(_serve(options.port))
    loop.run_forever()


if __name__ == "__main__":
    main()
