"""The chat page and what it needs."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse

from app.presentation.api.auth import authorized
from app.presentation.schemas.bodies import MarkdownBody, MarkdownRequest
from app.presentation.web.markdown import render_markdown

STATIC = Path(__file__).parents[2] / "web" / "static"

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

router = APIRouter()


@router.get("/", include_in_schema=False)
async def chat_page() -> FileResponse:
    """The chat page."""
    return FileResponse(
        STATIC / "index.html",
        headers={
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
            "cache-control": "no-cache",
        },
    )


@router.post("/api/render", dependencies=[Depends(authorized)], tags=["pages"])
def render(body: MarkdownRequest) -> MarkdownBody:
    """Markdown as HTML that is safe to show. Not a coroutine, so that long texts are rendered beside the event loop."""
    return MarkdownBody(html=render_markdown(body.markdown))
