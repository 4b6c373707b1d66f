"""A web application that owns one client for its lifetime. Serve it with: uvicorn fastapi_app:app

Needs, in the clone: pip install . fastapi uvicorn
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from pydantic import BaseModel

import mlbalance_client as mlb


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with mlb.AsyncClient() as app.state.llm:
        yield


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str
    user: str


@app.post("/ask")
async def ask(question: Question, request: Request) -> dict[str, str]:
    body = {"model": "sim", "messages": [{"role": "user", "content": question.text}], "max_tokens": 16}
    response = await request.app.state.llm.post(
        "/v1/chat/completions", json=body, extensions={"mlbalance": mlb.CallOptions(session=question.user)}
    )
    response.raise_for_status()
    return {"answer": response.json()["choices"][0]["message"]["content"]}
