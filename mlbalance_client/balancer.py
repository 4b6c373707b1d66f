"""The pick alone, for callers with a protocol of their own (gRPC, aiohttp, ...)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Never, Self

from .calls import Call, check_tokens
from .conduct.alarms import Alarm
from .conduct.engine import Engine
from .conduct.standing import Standing
from .config import BalancerConfig
from .core.fleet import Pick
from .core.model import Replica, Usage, Verdict
from .core.report import CallReport, Explanation, FleetSnapshot
from .dialects.plain import reading_of
from .errors import PASSED, ConfigError, DeadlineExceeded
from .events import Subscriber
from .face import Target
from .options import refuse_unknown, refuse_unsupported

__all__ = ["Balancer", "Lease"]


class Lease:
    """One picked and charged replica. Say how it went; leaving without a verdict means cancelled.

    An exception that leaves the block means that the replica has failed the call, unless a verdict was given before.
    One that is slow to begin counts against its replica as a call of ours does, if callers say of any when it begins.
    """

    def __init__(self, owner: Balancer, pick: Pick, report: CallReport, engine: Engine, began: float) -> None:
        self._owner = owner
        self._pick = pick
        self._engine = engine
        self._began = began
        now = engine.clock()
        self._expected = engine.hedging.expect(pick)
        slow_s = engine.hedging.slow_after_s(self._expected)
        self._standing = Standing(pick=pick, began=now, slow_s=slow_s, looked_at=now)
        self._alarm: Alarm | None = engine.alarms.set(now + slow_s, self._look)
        self._id = engine.new_id()
        self._call_id = ""
        self._settled = False
        if not owner.hears_of_first_content:
            pick.untold()
        self.report = report
        report.picked(pick)
        engine.tell.picked(self._id, pick, 1, report, began)

    @property
    def replica(self) -> Replica:
        """Where to send the call: ``.url``, ``.id``, ``.labels``."""
        return self._pick.replica

    @property
    def call_id(self) -> str:
        """What the call may bear as ``x-mlbalance-call``: a replica's load reports say by it whether they count it.

        Read it just before the call is sent, and only if it is: what is not acknowledged is taken to be on its way.
        """
        if not self._call_id:
            client, number = self._engine.reporting.client, self._engine.new_number()
            self._call_id = f"{client}.{number}"
            self._pick.numbered(number)
        return self._call_id

    def first_content(self) -> None:
        """The first token (or row) came: the prefill is done."""
        now = self._engine.clock()
        if self.report.ttft_s is None:
            self.report.ttft_s = now - self._began
            self._learn(now, None)
        self._owner.hears_of_first_content = True
        self._pick.first_content(now)

    def more_content(self) -> None:
        """More of a stream came, to a reader who was waiting for it: its pace shows how busy the replica is."""
        self._pick.piece(float("-inf"), self._engine.clock())

    def succeed(
        self,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """The call went well; figures as the replica gave them, where it did. Raises ConfigError for others."""
        figures = {
            "prompt_tokens": prompt_tokens,
            "cached_tokens": cached_tokens,
            "output_tokens": output_tokens,
        }
        for name, figure in figures.items():
            check_tokens(name, figure)
        if self._pick.demand.blind and not self._settled:
            now = self._engine.clock()
            if self.report.ttft_s is None:
                self.report.ttft_s = now - self._began
            self._learn(now, output_tokens)
        self._settle(Verdict.OK, Usage(prompt_tokens, cached_tokens, output_tokens))

    def fail(self, error: BaseException | str) -> None:
        """The replica failed the call."""
        if not self._settled:
            self.report.reason = f"failed: {error}"
            self._pick.failed(self._engine.clock())
        self._settle(Verdict.FAILED)

    def release(self) -> None:
        """End the lease without a verdict, as if the call was cancelled; nothing if there was one."""
        if self._alarm is not None and not self._settled and self._says_when_it_begins:
            now = self._engine.clock()
            self._engine.hedging.cut_short(self._expected, now - self._standing.began, now)
            self._pick.cut_short(now)
        self._settle(Verdict.CANCELLED)

    @property
    def _says_when_it_begins(self) -> bool:
        return self._owner.hears_of_first_content and not self._pick.demand.blind

    def _learn(self, now: float, output_tokens: int | None) -> None:
        """It has begun; of one that is not streamed: ended."""
        self._engine.hedging.answered(self._expected, now - self._standing.began, now, output_tokens)
        self._look_no_more()

    def _look(self) -> None:
        """It is slow to begin."""
        now, standing, alarms = self._engine.clock(), self._standing, self._engine.alarms
        look_at = alarms.seen_at(standing.began, standing.slow_s, now)
        if look_at <= now:
            speaks = self._pick.demand.blind or self._says_when_it_begins
            look_at = standing.found_slow(now, speaks=speaks)
        self._alarm = alarms.set(look_at, self._look)

    def _look_no_more(self) -> None:
        if self._alarm is not None:
            self._engine.alarms.cancel(self._alarm)
            self._alarm = None

    def _settle(self, verdict: Verdict, usage: Usage | None = None) -> None:
        if not self._settled:
            self._settled = True
            self._look_no_more()
            self._pick.settle(verdict, self._engine.clock(), usage)
            self._engine.tell.settled(self._id, self._pick, self.report, self._began, verdict, usage)


class Balancer:
    """Picks replicas; ``target`` as for ``AsyncClient``. An async context manager, on asyncio and trio.

    Raises ConfigError, also for any option: all there is to say is in the configuration that is the target.
    """

    def __init__(self, target: Target = None, **options: Never) -> None:
        refuse_unknown(options, ("target",))
        refuse_unsupported(options)
        self._engine = Engine(BalancerConfig.from_target(target))
        self.hears_of_first_content = False

    async def __aenter__(self) -> Self:
        self._engine.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the background loops."""
        await self._engine.aclose()

    @asynccontextmanager
    async def acquire(self, call: Call) -> AsyncIterator[Lease]:
        """Pick a replica for ``call`` and hold the charge until the block ends; waits while all are full.

        Raises NoReplicas, NoCapacity, QueueTimeout, and DeadlineExceeded if ``deadline_s`` passes in the queue.
        """
        _check("acquire", call)
        engine = self._engine
        engine.start()
        await engine.replicas_known()
        engine.reporting.called()
        began = engine.clock()
        report = CallReport(tenant=call.options.tenant, priority=call.options.priority)
        deadline = call.options.deadline_at(began)
        if deadline <= began:
            raise DeadlineExceeded(PASSED)
        demand = engine.demand(reading_of(call), call.options)
        pick = engine.queueing.queue.try_pick(demand, began, priority=call.options.priority)
        if pick is None:
            pick = await engine.queueing.wait(
                engine.new_id(), demand, call.options, report, deadline=deadline
            )
        lease = Lease(self, pick, report, engine, began)
        try:
            yield lease
        except Exception as error:
            lease.fail(error)
            raise
        finally:
            lease.release()

    def snapshot(self) -> FleetSnapshot:
        """What the client believes of each replica."""
        return self._engine.snapshot()

    def explain(self, call: Call) -> Explanation:
        """Which replica ``call`` would get now, and why; nothing is charged. Raises NoReplicas, ConfigError."""
        _check("explain", call)
        demand = self._engine.demand(reading_of(call), call.options)
        return self._engine.preview(demand, call.options)

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Hear every event until the returned function is called."""
        return self._engine.events.subscribe(subscriber)


def _check(method: str, call: object) -> None:
    if not isinstance(call, Call):
        raise ConfigError(f"{method} takes a Call, such as Call(prompt=...), not a {type(call).__name__}")
