"""Checks replicas of whom calls tell nothing: their server by its health endpoint, their model by a call of one token.

A server that answers proves no more than that. So the model decides of replicas that failed calls, and is asked as
callers ask it: by the newest call's API and model that the replica serves.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import anyio

from ..config import HealthChecksConfig
from ..core.fleet import Fleet
from ..core.health.fitness import Unproven
from ..core.health.outlier import Failure, Proof, failure_of_status
from ..core.health.vigil import Vigil
from ..core.model import Replica, ReplicaId
from ..core.report import LastCheck
from ..dialects import ChecksModels, Dialect, Ending, ModelCheck
from ..events import HealthCheckFailed, HealthCheckPassed
from ..health import Finding, Get, Health, SystemCheck, generating_path, judged
from ..load_reports import NoAnswer, Page
from ..wire import Wire
from .asking import Asking
from .reporting import Reporting

logger = logging.getLogger("mlbalance_client")

Told = HealthCheckFailed | HealthCheckPassed

_LOOKS_AN_INTERVAL = 10.0
# Models that nobody has called for so long are not in use.
_RECENT_S = 600.0
_MOST_MODELS = 64
_BY_ITSELF_TOKENS = 4
_WHY_CHARS = 200


@dataclass(slots=True)
class _Checked:
    """A replica that is being checked now and then. ``ill``: which of its checks fails, since ``ill_since``.

    ``asked``: whether the check under way has come to its server, and so cost it something.
    """

    replica: Replica
    asking: Asking
    system: SystemCheck
    last: LastCheck | None = None
    ill: str | None = None
    ill_since: float | None = None
    asked: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Checkups:
    """One client's. ``tell``: where events go; ``runs``: whether there is anything to run.

    Its chance is its own, as that of reporting.
    """

    def __init__(
        self,
        config: HealthChecksConfig,
        fleet: Fleet,
        wire: Wire,
        reporting: Reporting,
        clock: Callable[[], float],
        tell: Callable[[Told], None],
    ) -> None:
        self.runs = config.enabled
        self._config = config
        self._fleet = fleet
        self._wire = wire
        self._reporting = reporting
        self._clock = clock
        self._tell = tell
        self._rng = Random()
        self._vigil = Vigil(config, self._rng)
        self._headers = [
            (name.encode("ascii"), value.get_secret_value().encode("ascii"))
            for name, value in config.headers.items()
        ]
        self._recent: dict[str | None, tuple[float, Dialect, str]] = {}
        self._calls = 0
        self._checked: dict[ReplicaId, _Checked] = {}
        self._warned: set[str] = set()

    def start(self, seed: int) -> None:
        """Before anything else, in the process that will run it."""
        self._rng.seed(seed)
        self._fleet.fitness.outliers.awaits_checks = True

    def called(self, model: str | None, dialect: Dialect, path: str, now: float) -> None:
        """There is a call; on the path of every one."""
        if not self.runs:
            return
        self._calls += 1
        self._recent[model] = now, dialect, path

    def last(self, id_: ReplicaId) -> LastCheck | None:
        """What came of a replica's last check."""
        checked = self._checked.get(id_)
        return None if checked is None else checked.last

    def update(self, replicas: Iterable[Replica]) -> None:
        """These are in the fleet now; checks of others end at once."""
        wanted = {replica.id: replica for replica in replicas}
        for id_, checked in list(self._checked.items()):
            replica = wanted.get(id_)
            known = checked.replica
            if replica is None or (replica.url, replica.tls_name) != (known.url, known.tls_name):
                del self._checked[id_]
                checked.scope.cancel()
            else:
                checked.replica = replica
        self._vigil.keep(wanted)

    async def run(self) -> None:
        """Check until cancelled."""
        interval_s = self._config.interval_s
        async with anyio.create_task_group() as tasks:
            while True:
                await anyio.sleep(interval_s / _LOOKS_AN_INTERVAL)
                now = self._clock()
                unproven = {u.replica.id: u for u in self._fleet.fitness.without_evidence(now, interval_s)}
                for id_ in self._vigil.due(unproven, now, self._calls):
                    tasks.start_soon(self._check, self._of(unproven[id_].replica), unproven[id_])
                self._forget_models(now)

    def _of(self, replica: Replica) -> _Checked:
        checked = self._checked.get(replica.id)
        if checked is None:
            asking = Asking(
                *(self._wire, replica.url, replica.tls_name, self._config.timeout_s, None, self._clock),
                headers=self._headers,
            )
            checked = self._checked[replica.id] = _Checked(replica, asking, SystemCheck(self._config.path))
        checked.scope, checked.asked = anyio.CancelScope(), False
        return checked

    # -- one check ----------------------------------------------------------------------------------------------

    async def _check(self, checked: _Checked, unproven: Unproven) -> None:
        id_, calls = checked.replica.id, self._calls
        try:
            with checked.scope:
                await self._system_then_model(checked, unproven)
        except Exception:
            logger.exception("the health check of %s failed", id_)
        finally:
            report = self._fleet.report(id_, now := self._clock())
            # Its clients share what checks cost it; nor is what it told of them before it fell true any more.
            clients = report.subscribers if report is not None and checked.asked else None
            self._vigil.ended(id_, now, calls, clients)

    async def _system_then_model(self, checked: _Checked, unproven: Unproven) -> None:
        id_, in_doubt = checked.replica.id, unproven.needs is Proof.MODEL
        # A fresh report shows that its server answers; but it may be of before an ejection.
        if in_doubt or unproven.out or self._fleet.report(id_, self._clock()) is None:
            kind = self._reporting.kind_of(id_)
            ask = checked.system.run(self._pages(checked), kind, out=unproven.out)
            if await self._finds(checked, Proof.SYSTEM, ask) is Health.FAILED:
                return
        if self._config.model == "silent" or (in_doubt and self._config.model == "ejected"):
            found = self._model_check(checked.replica)
            if found is not None and self._vigil.afford(found[0].tokens, self._clock()):
                await self._finds(checked, Proof.MODEL, self._ask_model(checked, *found))

    async def _finds(self, checked: _Checked, proof: Proof, ask: Awaitable[Finding]) -> Health:
        failure, asked = Failure.ERROR, self._clock()
        try:
            finding = await ask
        except NoAnswer as error:
            checked.asked |= not error.refused
            failure = Failure.UNREACHABLE if error.refused else Failure.SILENT
            finding = Finding(Health.FAILED, str(error))
        now, id_ = self._clock(), checked.replica.id
        if finding.health is Health.FAILED and not self._fleet.fitness.check_failed(
            id_, asked, now, failure, proof
        ):
            return Health.UNKNOWN
        check = proof.name.lower()
        checked.last = LastCheck(check, finding.health.value, finding.why, now)
        if finding.health is Health.PASSED:
            self._fleet.fitness.checked(id_, now, proof)
            if checked.ill == check and checked.ill_since is not None:
                self._tell(HealthCheckPassed(now, id_, check, now - checked.ill_since))
                checked.ill = checked.ill_since = None
        elif finding.health is Health.UNKNOWN:
            self._fleet.fitness.reached(id_, now)
        elif finding.health is Health.FAILED:
            if checked.ill_since is None:
                checked.ill_since = now
                self._tell(HealthCheckFailed(now, id_, check, finding.why))
            checked.ill = check
        if finding.wants and finding.wants not in self._warned:
            self._warned.add(finding.wants)
            logger.warning("health checks tell nothing, of %s first: %s", id_, finding.why)
        return finding.health

    def _pages(self, checked: _Checked) -> Get:
        async def get(path: str) -> tuple[int, bytes]:
            page = await checked.asking(path)
            checked.asked = True
            return page.status, page.body

        return get

    # -- the model ----------------------------------------------------------------------------------------------

    def _model_check(self, replica: Replica) -> tuple[ModelCheck, Dialect | None] | None:
        """How to check the model that callers called last, of those that the replica serves."""
        calls = [(at, model) for model, (at, _, _) in self._recent.items() if replica.serves(model)]
        if not calls:
            return None
        _, model = max(calls, key=lambda call: call[0])
        _, dialect, path = self._recent[model]
        if isinstance(dialect, ChecksModels):
            check = dialect.model_check(path, model)
            return None if check is None else (check, dialect)
        by_itself = generating_path(self._reporting.kind_of(replica.id))
        return None if by_itself is None else (ModelCheck("GET", by_itself, tokens=_BY_ITSELF_TOKENS), None)

    async def _ask_model(self, checked: _Checked, check: ModelCheck, dialect: Dialect | None) -> Finding:
        page = await checked.asking.call(
            check.method, check.path, check.body, timeout_s=self._config.model_timeout_s
        )
        checked.asked = True
        ending = None if dialect is None or not check.body else _ending(page, dialect)
        if ending is not None and (error := ending.error) is not None:
            status = error.status if page.status == 200 else page.status
            if failure_of_status(status, None, says_busy=error.busy) is Failure.PUSHBACK:
                return Finding(Health.UNKNOWN, f"{check.path}: {error.message[:_WHY_CHARS]}")
        status = 500 if page.status in check.not_ready else page.status
        finding = judged(status, page.body, check.path)
        if finding is None:
            return Finding(Health.UNKNOWN, f"{check.path}: status {page.status}")
        if finding.health is not Health.PASSED or ending is None:
            return finding
        return self._read(check, ending)

    def _read(self, check: ModelCheck, ending: Ending) -> Finding:
        """What is in an answer of status 200, which may yet be an error."""
        if ending.error is not None:
            health = Health.FAILED if ending.error.status >= 500 else Health.UNKNOWN
            return Finding(health, f"{check.path}: {ending.error.message[:_WHY_CHARS]}")
        if not ending.complete:
            return Finding(Health.UNKNOWN, f"{check.path}: an answer that is not understood")
        if (usage := ending.usage) is not None:
            self._vigil.cost_more((usage.prompt_tokens or 0) + (usage.output_tokens or 0) - check.tokens)
        return Finding(Health.PASSED)

    def _forget_models(self, now: float) -> None:
        """Those that nobody has called for long, and the oldest of very many."""
        newest = sorted(self._recent, key=lambda model: self._recent[model][0], reverse=True)
        for model in newest[_MOST_MODELS:]:
            del self._recent[model]
        for model in newest[:_MOST_MODELS]:
            if now - self._recent[model][0] > _RECENT_S:
                del self._recent[model]


def _ending(page: Page, dialect: Dialect) -> Ending:
    """What an answer tells of itself."""
    watch = dialect.watch(page.status, page.headers.get("content-type", ""))
    watch.feed(page.body)
    return watch.end()
