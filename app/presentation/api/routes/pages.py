"""The chat page and what it needs."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.presentation.api.problems import PROBLEMS
from app.presentation.schemas.bodies import MarkdownBody, MarkdownRequest
from app.presentation.web.markdown import render_markdown

STATIC = Path(__file__).parents[2] / "web" / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter()


@cache
def chat_page_html(core_events: str | None) -> str:
    """The page's HTML; with the address of what Core received where there is one, so that no page asks in vain."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    return page.replace('data-events=""', f'data-events="{core_events}"') if core_events else page


@router.get("/", include_in_schema=False)
async def chat_page(request: Request) -> HTMLResponse:
    """The chat page."""
    return HTMLResponse(
        chat_page_html(getattr(request.app.state, "core_events", None)),
        headers={
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


@router.post("/api/render", responses=PROBLEMS, tags=["pages"])
async def render(body: MarkdownRequest) -> MarkdownBody:
    """Markdown as HTML that is safe to show."""
    return MarkdownBody(html=await to_thread.run_sync(render_markdown, body.markdown, limiter=_one_at_a_time()))


@cache
def _one_at_a_time() -> CapacityLimiter:
    """Rendering is work for the processor, of which the streams need the most: one text at a time, beside the loop."""
    return CapacityLimiter(1)
