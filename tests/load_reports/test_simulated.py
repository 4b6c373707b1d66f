"""Against the simulated replica over HTTP: what it truly has is what the report says."""

from __future__ import annotations

import http.client
import json
import threading
from urllib.parse import urlsplit

import pytest

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.load_reports import NoAnswer, Page, create
from mlbalance_client.load_reports.auto import Auto
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from ..conftest import eventually

pytestmark = pytest.mark.anyio


class HttpFetch:
    """One connection a page; blocking, as nothing else runs beside it here."""

    def __init__(self, url: str) -> None:
        self._netloc = urlsplit(url).netloc
        self.asked: list[str] = []

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        self.asked.append(path)
        connection = http.client.HTTPConnection(self._netloc, timeout=10)
        try:
            connection.request("GET", path, headers={"accept": accept})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return Page(answer.status, headers, answer.read())
        except ConnectionRefusedError as error:
            raise NoAnswer(str(error), refused=True) from None
        finally:
            connection.close()


@pytest.mark.parametrize("kind", ["auto", "vllm", "sglang"])
async def test_an_idle_replica(fleet: Fleet, kind: str) -> None:
    form = create(LoadReportsConfig(kind=kind))
    assert form is not None

    report = await form.read(HttpFetch(fleet.urls[0]), 1.0)

    assert report.source == ("vllm" if kind == "auto" else kind)
    assert (report.state, report.running, report.waiting, report.kv_used) == ("ready", 0, 0, 0.0)
    assert report.kv_capacity_tokens == fleet.spec.kv_tokens
    assert report.doubts == ()


async def test_a_busy_replica_says_what_it_truly_has() -> None:
    with Fleet(1, spec=EngineSpec(max_running=2)) as fleet:
        calls = [
            threading.Thread(target=ask, args=(fleet.urls[0], number), daemon=True) for number in range(5)
        ]
        for call in calls:
            call.start()
        assert eventually(lambda: (fleet.state(0)["running"], fleet.state(0)["waiting"]) == (2, 3))
        fetch = HttpFetch(fleet.urls[0])
        for kind in ("vllm", "sglang"):
            form = create(LoadReportsConfig(kind=kind))
            assert form is not None
            report = await form.read(fetch, 1.0)
            assert (report.running, report.waiting) == (2, 3)
        assert report.prefill_tokens == report.waiting_tokens
        assert (report.waiting_tokens or 0) > 0
        assert report.batch_limit == 2
    for call in calls:
        call.join(10)


async def test_a_restarted_replica_is_looked_at_again() -> None:
    with Fleet(1, spec=EngineSpec().scaled(20)) as fleet:
        fetch = HttpFetch(fleet.urls[0])
        form = create(LoadReportsConfig())
        assert isinstance(form, Auto)
        await form.read(fetch, 1.0)
        fleet.kill(0)
        with pytest.raises(NoAnswer):
            await form.read(fetch, 2.0)
        fleet.restart(0)
        fetch.asked.clear()

        report = await form.read(fetch, 3.0)

        assert (report.source, form.found) == ("vllm", "vllm")
        assert "/v1/models" in fetch.asked


async def test_a_loading_replica_is_no_known_engine_yet() -> None:
    with Fleet(1, spec=EngineSpec().scaled(20)) as fleet:
        fleet.set_faults(0, loading=True)
        form = create(LoadReportsConfig())
        assert isinstance(form, Auto)
        with pytest.raises(Exception, match="none of the known formats"):
            await form.read(HttpFetch(fleet.urls[0]), 1.0)
        fleet.set_faults(0)

        assert (await form.read(HttpFetch(fleet.urls[0]), 2.0)).state == "ready"


def ask(url: str, number: int) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    message = {"role": "user", "content": f"{number} " * 4000}
    body = json.dumps({"model": "sim", "max_tokens": 5000, "stream": True, "messages": [message]})
    try:
        connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        pass  # the fleet ends while it generates
    finally:
        connection.close()
