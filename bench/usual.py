"""The usual way to relay an LLM's answer, which the benchmark compares with.

FastAPI, a LangGraph graph whose node calls ``ChatOpenAI``, ``graph.astream(..., stream_mode="messages")`` and one
``websocket.send_json`` per token, on uvicorn with uvloop: what the documentation of these projects shows, with their
defaults. It speaks the frames of Turnstone's ``/chat`` as far as a benchmark's client needs them, and does less:
nothing is stored, no history is sent, there is no cancel, no resume and no callback.

``python -m bench.usual --port 0 --provider http://127.0.0.1:9000`` prints its address and serves.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from typing import Any

# read when LangChain is imported: a benchmark reports to nobody
os.environ.update(LANGSMITH_TRACING="false", LANGCHAIN_TRACING_V2="false", LANGGRAPH_CLI_NO_ANALYTICS="1")

import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from langchain_core.messages import AIMessageChunk, HumanMessage
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.graph.state import CompiledStateGraph
from pydantic import SecretStr

Graph = CompiledStateGraph[MessagesState, None, MessagesState, MessagesState]


def build_graph(provider: str) -> Graph:
    """A graph of one node that asks the model; ``provider`` is an address without ``/v1``."""
    model = ChatOpenAI(model="scripted", base_url=f"{provider}/v1", api_key=SecretStr("unused"), stream_usage=True)

    async def writer(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("writer", writer)
    graph.add_edge(START, "writer")
    graph.add_edge("writer", END)
    return graph.compile()


async def run_turn(websocket: WebSocket, graph: Graph, frame: dict[str, Any]) -> None:
    """Answer one message frame: ``started``, a ``delta`` per token, ``done``."""
    turn_id = frame["turn_id"]
    session_id = str(frame.get("session_id") or f"{frame['exam_id']}-{frame['participant_id']}")
    await websocket.send_json({"type": "started", "session_id": session_id, "turn_id": turn_id})
    usage: dict[str, Any] | None = None
    finish_reason = None
    question = HumanMessage(frame["message"])
    async for chunk, _metadata in graph.astream({"messages": [question]}, stream_mode="messages"):
        if not isinstance(chunk, AIMessageChunk):
            continue
        if chunk.content:
            await websocket.send_json({"type": "delta", "turn_id": turn_id, "content": chunk.content})
        if chunk.usage_metadata:
            usage = {
                "prompt_tokens": chunk.usage_metadata["input_tokens"],
                "completion_tokens": chunk.usage_metadata["output_tokens"],
                "total_tokens": chunk.usage_metadata["total_tokens"],
            }
        finish_reason = chunk.response_metadata.get("finish_reason", finish_reason)
    await websocket.send_json({"type": "done", "turn_id": turn_id, "finish_reason": finish_reason, "usage": usage})


def create_app(provider: str) -> FastAPI:
    """The application; one graph serves every connection."""
    app = FastAPI()
    graph = build_graph(provider)

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await run_turn(websocket, graph, await websocket.receive_json())
        except WebSocketDisconnect:
            return

    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until SIGINT or SIGTERM; the first line on standard output is the address."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--provider", required=True, help="address of the provider, without /v1")
    options = parser.parse_args(arguments)
    listener = socket.create_server(("127.0.0.1", options.port), backlog=2048)
    config = uvicorn.Config(create_app(options.provider), loop="uvloop", access_log=False, log_level="warning")
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
