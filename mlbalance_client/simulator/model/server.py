"""A simulated replica over HTTP: a pure ASGI app around one engine, with vLLM's endpoints and faults on request.

``python -m mlbalance_client.simulator.model.server`` reads its options as JSON from standard input, prints the port it
listens on, and ends when standard input closes: so no replica outlives the fleet that started it.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import socket
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from random import Random
from typing import Any

from .apis import APIS, Api, Ask, BadRequest, Done, filler, sse
from .driver import Driver
from .engine import Engine
from .faults import Faults
from .metrics_page import loads, metrics
from .router import quote
from .spec import EmissionKind, EngineSpec, Job
from .traces import job_of_text

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MAX_ROWS = 1_000_000
_BUSY = (
    "The engine is currently busy and cannot accept new requests. "
    "Please try again later or on a different instance."
)


@dataclass(frozen=True, slots=True)
class Options:
    """How a replica is started; times in seconds.

    ``drain_s``: at SIGTERM no connection is taken any more, and streams under way may go on for so long.
    ``middleware``: dotted paths of ASGI middlewares, each called with the app inside it, the last outermost, as vLLM's
    ``--middleware`` takes them.
    """

    spec: EngineSpec = field(default_factory=EngineSpec)
    faults: Faults = field(default_factory=Faults)
    model: str = "sim"
    emit_interval_s: float = 0.0
    seed: int = 0
    port: int = 0
    drain_s: int = 1
    middleware: tuple[str, ...] = ()


class _Gone(Exception):
    """The client has closed its connection."""


class ReplicaApp:
    """The ASGI app of one replica. Needs asyncio."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.engine = Engine(options.spec, emit_tokens=True)
        self.faults = options.faults
        self._apply_faults()
        self._driver = Driver(self.engine, options.emit_interval_s)
        self._ids = count(1)
        self._rng = Random(options.seed)
        self.seen = 0
        self.seen_bytes = 0
        self.in_flight = 0
        self.refused = 0

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "http":
            try:
                await self._route(scope["method"], scope["path"], receive, send)
            except _Gone:
                return

    def set_faults(self, faults: Faults) -> None:
        """These instead of those it has."""
        self.faults = faults
        self._apply_faults()

    def state(self) -> dict[str, Any]:
        """The replica's true state, JSON-able."""
        engine = self.engine
        return {
            "seen": self.seen,
            "seen_bytes": self.seen_bytes,
            "in_flight": self.in_flight,
            "refused": self.refused,
            "finished": engine.finished,
            "aborted": engine.aborted,
            "running": engine.running,
            "waiting": engine.waiting,
            "prefill_tokens_outstanding": engine.prefill_tokens_outstanding,
            "prompt_tokens": engine.prefix_queries_total,
            "prefilled_tokens": engine.prompt_tokens_total,
            "cached_tokens": engine.prefix_hits_total,
            "work_s": engine.work_s,
            "busy_s": engine.busy_s,
            "faults": self.faults.as_dict(),
        }

    async def _route(self, method: str, path: str, receive: Receive, send: Send) -> None:
        if path.startswith("/_sim/"):
            await self._control(path.removeprefix("/_sim/"), await _body(receive), send)
        elif self.faults.loading:
            error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
            await _json(send, 503, {"error": error})
        elif method == "POST" and (api := APIS.get(path)) is not None:
            await self._call(api, receive, send)
        elif method == "POST" and path.startswith("/v2/models/") and path.endswith("/infer"):
            await self._infer(path.split("/")[3], receive, send)
        else:
            await self._inspect(path, send)

    async def _inspect(self, path: str, send: Send) -> None:
        model = self.options.model
        match path:
            case "/health" | "/ping":
                await _answer(send, 200, b"", b"text/plain")
            case "/version":
                await _json(send, 200, {"version": "0.32.0"})
            case "/load":
                await _json(send, 200, {"server_load": self.in_flight})
            case "/is_sleeping":
                await _json(send, 200, {"is_sleeping": False})
            case "/metrics":
                page = metrics(self.engine, model).encode()
                await _answer(send, 200, page, b"text/plain; version=1.0.0; charset=utf-8")
            case "/v1/loads":
                await _json(send, 200, loads(self.engine))
            case "/v1/models":
                row = {
                    "id": model,
                    "object": "model",
                    "created": 0,
                    "owned_by": "sim",
                    "max_model_len": 1_000_000,
                }
                await _json(send, 200, {"object": "list", "data": [row]})
            case "/v2/health/live" | "/v2/health/ready":
                await _answer(send, 200, b"", b"application/json")
            case _ if path == f"/v2/models/{model}/ready":
                await _json(send, 200, {"name": model, "ready": True})
            case _:
                await _json(send, 404, {"detail": "Not Found"})

    async def _control(self, what: str, body: bytes, send: Send) -> None:
        try:
            match what:
                case "state":
                    await _json(send, 200, self.state())
                case "faults":
                    self.set_faults(Faults.of(_parsed(body)))
                    await _json(send, 200, self.faults.as_dict())
                case "flush":
                    self.engine.flush_cache()
                    await _json(send, 200, {})
                case "quote":
                    await _json(send, 200, self._quote(_parsed(body)))
                case _:
                    await _json(send, 404, {"detail": "Not Found"})
        except (ValueError, TypeError, KeyError) as error:
            await _json(send, 400, {"error": str(error)})

    def quote(self, job: Job, *, sees_cold: bool = True) -> float | None:
        """What the omniscient router wants to know of this engine for one job; None: it does not serve all calls."""
        if self.faults.turn_calls_away:
            return None
        return quote(self.engine, self._driver.now(), job, sees_cold=sees_cold)

    def _quote(self, asked: Any) -> dict[str, float | None]:
        if not isinstance(asked, dict):
            raise TypeError("the body must be a JSON object")
        if not isinstance(asked.get("blocks"), list):
            raise TypeError("blocks must be a list")
        job = Job("quote", tuple(asked["blocks"]), asked["block_tokens"], asked["prompt_tokens"], 1)
        return {"score_s": self.quote(job, sees_cold=asked.get("sees_cold", True))}

    def _apply_faults(self) -> None:
        self.engine.slowdown = self.faults.slow
        self.engine.cold_calls = (
            self.engine.finished + self.faults.cold_calls if self.faults.cold_calls else 0
        )

    # -- calls --------------------------------------------------------------------------------------------------

    async def _call(self, api: Api, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        self.seen += 1
        self.seen_bytes += len(body)
        if await self._faulty(receive, send):
            return
        try:
            fields = _parsed(body)
            if not isinstance(fields, dict):
                raise BadRequest("the body must be a JSON object")
            ask = api.ask(fields)
        except (ValueError, TypeError, AttributeError) as error:
            detail = {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}
            await _json(send, 400, {"error": detail})
            return
        ask = replace(ask, model=ask.model or self.options.model)
        if ask.model != self.options.model:
            message = f"The model `{ask.model}` does not exist."
            detail = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
            await _json(send, 404, {"error": detail})
            return
        self.in_flight += 1
        try:
            await self._until_gone(self._serve(api, ask, send), receive)
        finally:
            self.in_flight -= 1

    async def _serve(self, api: Api, ask: Ask, send: Send) -> None:
        number = next(self._ids)
        job = job_of_text(ask.text, ask.output_tokens, str(number))
        done = Done(f"sim-{number}", ask.model, job.prompt_tokens, 0, ask.output_tokens)
        stall = self._stall()
        if not ask.stream:
            async for emission in self._driver.run(job, stall=stall):
                done = Done(
                    done.id, done.model, done.prompt_tokens, emission.cached_tokens, ask.output_tokens
                )
            await _json(send, 200, api.whole(done))
            return
        await _start(send, 200, b"text/event-stream; charset=utf-8")
        events, told = 0, 0
        async for emission in self._driver.run(job, stall=stall):
            done = replace(done, cached_tokens=emission.cached_tokens, sent=events)
            pieces = [*api.first(done)] if not told else []
            pieces.append(api.more(done, filler(emission.tokens - told)))
            told = emission.tokens
            if emission.kind is EmissionKind.FINISHED:
                pieces += api.last(done, ask)
            await send({"type": "http.response.body", "body": b"".join(pieces), "more_body": True})
            events += 1
            if self.faults.break_after and events >= self.faults.break_after:
                raise ConnectionResetError("broken on request")
        await send({"type": "http.response.body", "body": b""})

    async def _infer(self, model: str, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        self.seen += 1
        self.seen_bytes += len(body)
        if await self._faulty(receive, send):
            return
        try:
            rows = int(_parsed(body)["inputs"][0]["shape"][0])
        except (ValueError, KeyError, IndexError, TypeError):
            rows = -1
        if not 0 <= rows <= _MAX_ROWS:
            await _json(send, 400, {"error": f"inputs need a shape of 0 to {_MAX_ROWS} rows"})
            return
        if model != self.options.model:
            await _json(send, 404, {"error": f"Request for unknown model: '{model}' is not found"})
            return
        self.in_flight += 1
        try:
            await self._until_gone(self._rows(model, rows, body, send), receive)
        finally:
            self.in_flight -= 1

    async def _rows(self, model: str, rows: int, body: bytes, send: Send) -> None:
        number = next(self._ids)
        async for _ in self._driver.run(job_of_text(body, 1, f"infer-{number}"), stall=self._stall()):
            pass
        output = {"name": "output", "datatype": "FP32", "shape": [rows, 1], "data": [0.5] * rows}
        await _json(send, 200, {"model_name": model, "id": str(number), "outputs": [output]})

    def _stall(self) -> float:
        """How many times as long the next call's first token takes."""
        faults = self.faults
        return faults.stall_factor if faults.stall_share and self._rng.random() < faults.stall_share else 1.0

    async def _faulty(self, receive: Receive, send: Send) -> bool:
        """Play the faults that replace an answer; True if one did."""
        faults = self.faults
        if faults.hanging:
            while (await receive())["type"] != "http.disconnect":
                pass
            return True
        if faults.reject_in_band:
            self.refused += 1
            await _start(send, 200, b"text/event-stream; charset=utf-8")
            error = {"message": _BUSY, "type": "Service Unavailable", "param": None, "code": 503}
            await send({"type": "http.response.body", "body": sse({"error": error}), "more_body": True})
            await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
            return True
        full = faults.max_queue and self.engine.waiting >= faults.max_queue
        status = faults.reject_status or (503 if full else 0)
        if not status and faults.failing and self._rng.random() < faults.failing:
            status = faults.failing_status
        if not status:
            return False
        self.refused += 1
        error = {"message": _BUSY, "type": "Service Unavailable", "param": None, "code": status}
        headers = [] if faults.retry_after_s < 0 else [(b"retry-after", f"{faults.retry_after_s:g}".encode())]
        await _json(send, status, {"error": error}, headers)
        return True

    @staticmethod
    async def _until_gone(work: Any, receive: Receive) -> None:
        """Do the work, unless the client closes its connection first."""
        serving = asyncio.ensure_future(work)
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait((serving, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not serving.done():
                raise _Gone
            await serving
        finally:
            for task in (serving, leaving):
                task.cancel()
            await asyncio.gather(serving, leaving, return_exceptions=True)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        raise BadRequest("the JSON is nested too deeply") from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _start(send: Send, status: int, content_type: bytes, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", content_type), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _answer(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: list[tuple[bytes, bytes]] | None = None,
) -> None:
    await _start(send, status, content_type, (b"content-length", str(len(body)).encode()), *(headers or ()))
    await send({"type": "http.response.body", "body": body})


async def _json(send: Send, status: int, body: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await _answer(send, status, json.dumps(body).encode(), b"application/json", headers)


def wrapped(app: Any, middleware: Sequence[str]) -> Any:
    """The app inside its middlewares. Raises ValueError that names the one which cannot be had."""
    for path in middleware:
        module, _, name = path.rpartition(".")
        try:
            app = getattr(importlib.import_module(module), name)(app)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ValueError(f"middleware {path!r}: {error}") from error
    return app


def main() -> None:
    """Serve one replica until standard input closes."""
    import uvicorn

    given = json.loads(sys.stdin.readline())
    options = Options(
        **{**given, "spec": EngineSpec(**given.get("spec", {})), "faults": Faults.of(given.get("faults", {}))}
    )
    try:
        app = wrapped(ReplicaApp(options), options.middleware)
    except ValueError as error:
        print(error, flush=True)
        sys.exit(1)
    # With its protocol named, asyncio sees that it is TCP, and turns Nagle's algorithm off.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", options.port))
        listener.listen(2048)
    except OSError as error:
        print(f"port {options.port}: {error.strerror}", flush=True)
        sys.exit(1)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(
        app, http="httptools", lifespan="off", log_level="critical", access_log=False,
        timeout_graceful_shutdown=options.drain_s,
    )  # fmt: skip
    server = uvicorn.Server(config)

    async def serve() -> None:
        serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        server.should_exit = True
        await serving

    asyncio.run(serve())


if __name__ == "__main__":
    main()
