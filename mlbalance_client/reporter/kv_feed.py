"""Following an engine's KV cache events over ZMQ (extra ``kv-events``), in a thread of its own."""

from __future__ import annotations

import logging
import threading
from typing import Any, Self

from ..errors import ConfigError
from .kv_events import Board, KvEventError, KvIndex, decode
from .settings import ReporterSettings

LOGGER = logging.getLogger("mlbalance_client")
_POLL_MS = 500
_REPLAY_WITHIN_MS = 1000
_END = b"\xff" * 8


class KvFollower:
    """Keeps one engine's index in step: gaps are replayed; what cannot be, and a restart, begins anew.

    ``replay``: asks for the batches from a number on: those that came, in order.
    """

    def __init__(self, index: KvIndex, replay: Any, unpack: Any) -> None:
        self.index = index
        self.dropped = 0
        self._replay = replay
        self._unpack = unpack
        self._next: int | None = None

    def batch(self, number: int, payload: bytes) -> None:
        """A batch has come."""
        if self._next is None:
            self._catch_up(0, number)
        elif number < self._next:
            self.index.clear()
            self._catch_up(0, number)
        elif number > self._next and not self._catch_up(self._next, number):
            self.index.clear()
        self._apply(payload)
        self._next = number + 1

    def _catch_up(self, first: int, number: int) -> bool:
        """Replay what came from ``first`` on before ``number``; whether all of it was there."""
        expected = first
        for found, payload in self._replay(first) if first < number else ():
            if found >= number:
                break
            if found != expected:
                return False
            self._apply(payload)
            expected += 1
        return expected == number

    def _apply(self, payload: bytes) -> None:
        try:
            self.index.apply(decode(self._unpack(payload)))
        except (ValueError, TypeError, RecursionError, KvEventError) as error:
            self.dropped += 1
            if self.dropped == 1:
                LOGGER.warning("a KV event cannot be read (later ones are not logged): %r", error)


class KvFeed:
    """A thread that follows one publisher until ``close()``.

    ``endpoint``: as seen from here: ``tcp://host:5557`` is connected to; ``tcp://*:5557`` is bound, for engines that
    were given a concrete address and so connect themselves. ``replay``: the engine's replay endpoint, if it has one.
    Raises ConfigError if the packages are missing or the endpoint cannot be had.
    """

    def __init__(self, board: Board, endpoint: str, replay: str | None = None, topic: str = "") -> None:
        try:
            import msgpack
            import zmq
        except ImportError as error:
            raise ConfigError(
                f"KV events need {error.name}: install mlbalance-client with the extra [kv-events]"
            ) from error
        self._zmq = zmq
        self._replay_endpoint = replay
        self._context = zmq.Context()
        self._closing = False
        socket = self._context.socket(zmq.SUB)
        try:
            socket.setsockopt_string(zmq.SUBSCRIBE, topic)
            if "*" in endpoint or "::" in endpoint:
                socket.bind(endpoint)
            else:
                socket.connect(endpoint)
        except zmq.ZMQError as error:
            socket.close(0)
            self._context.term()
            raise ConfigError(f"KV events from {endpoint}: {error}") from error
        self.follower = KvFollower(
            KvIndex(board), self._ask, lambda data: msgpack.unpackb(data, strict_map_key=False)
        )
        self._thread = threading.Thread(
            target=self._run, args=(socket,), name="mlbalance kv events", daemon=True
        )
        self._thread.start()

    @classmethod
    def of(cls, board: Board, settings: ReporterSettings) -> Self | None:
        """As the settings have it: none if they ask for none."""
        if settings.kv_events is None:
            return None
        return cls(board, settings.kv_events, settings.kv_events_replay, settings.kv_events_topic)

    def close(self, *, wait: bool = False) -> None:
        """Stop following; ``wait`` until it has stopped. Without that it is safe in a signal handler."""
        self._closing = True
        if wait:
            self._thread.join()

    def _run(self, socket: Any) -> None:
        try:
            while not self._closing:
                if socket.poll(_POLL_MS):
                    frames = socket.recv_multipart()
                    if len(frames) == 3 and len(frames[1]) == 8:
                        self.follower.batch(int.from_bytes(frames[1], "big"), frames[2])
        except Exception:
            LOGGER.exception("KV events are no longer followed")
        finally:
            socket.close(0)
            self._context.term()

    def _ask(self, first: int) -> list[tuple[int, bytes]]:
        """The batches from ``first`` on, as the engine's buffer still has them."""
        found: list[tuple[int, bytes]] = []
        if self._replay_endpoint is None:
            return found
        with self._context.socket(self._zmq.DEALER) as socket:
            socket.setsockopt(self._zmq.LINGER, 0)
            socket.connect(self._replay_endpoint)
            socket.send_multipart([b"", first.to_bytes(8, "big")])
            while socket.poll(_REPLAY_WITHIN_MS):
                frames = socket.recv_multipart()  # newer engines put the topic before the number
                if len(frames) < 3 or frames[-2] == _END:
                    break
                found.append((int.from_bytes(frames[-2], "big"), frames[-1]))
        return found
