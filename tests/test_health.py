"""Which health endpoint is asked of an engine, and what its answers mean."""

from __future__ import annotations

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config.load_reports import BUILT_IN_REPORTS
from mlbalance_client.health import GENERIC, Finding, Health, SystemCheck, generating_path, judged

pytestmark = pytest.mark.anyio

UP = (200, b"")


class Pages:
    """A replica that has these pages and no others."""

    def __init__(self, **pages: tuple[int, bytes]) -> None:
        self.pages = {"/" + name.replace("__", "/"): page for name, page in pages.items()}
        self.asked: list[str] = []

    async def __call__(self, path: str) -> tuple[int, bytes]:
        self.asked.append(path)
        return self.pages.get(path, (404, b""))


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        *((kind, "/health") for kind in ("vllm", "sglang", "tgi", "tensorrt_llm", "llama_cpp")),
        ("triton", "/v2/health/ready"),
        ("kserve", "/v2/health/ready"),
        ("nim", "/v1/health/ready"),
        ("ray_serve", "/-/healthz"),
        ("torchserve", "/ping"),
        ("ollama", "/"),
    ],
)
async def test_a_known_engine_is_asked_at_its_own_endpoint(kind: str, path: str) -> None:
    replica = Pages()
    replica.pages[path] = UP
    assert (await SystemCheck().run(replica, kind)).health is Health.PASSED
    assert replica.asked == [path]
    assert kind in BUILT_IN_REPORTS


async def test_of_an_unknown_one_the_first_page_that_is_there_is_remembered() -> None:
    replica, check = Pages(ping=UP), SystemCheck()
    for _ in range(3):
        assert (await check.run(replica, None)).health is Health.PASSED
    assert replica.asked == [*GENERIC[:4], "/ping", "/ping"]

    del replica.pages["/ping"]
    replica.pages["/health"] = (503, b"loading")
    assert (await check.run(replica, None)).health is Health.FAILED
    assert (await check.run(replica, None)).health is Health.FAILED
    assert replica.asked[-3:] == ["/ping", "/health", "/health"]


@pytest.mark.parametrize("status", [301, 404, 405, 501])
async def test_a_page_that_is_not_there_says_nothing_of_health(status: int) -> None:
    async def absent(path: str) -> tuple[int, bytes]:
        asked.append(path)
        return status, b""

    asked: list[str] = []
    for check in (SystemCheck(), SystemCheck("/up")):
        for _ in range(5):
            assert (await check.run(absent, None)).health is Health.UNKNOWN
    assert asked == [*GENERIC, *["/up"] * 5]


async def test_one_that_had_none_is_looked_at_again_for_it_may_have_been_replaced() -> None:
    replica, check = Pages(), SystemCheck()
    await check.run(replica, None)
    replica.pages["/health"] = UP
    found = [(await check.run(replica, None)).health for _ in range(20)]

    assert found[0] is Health.UNKNOWN
    assert found[-1] is Health.PASSED


async def test_one_that_is_out_is_asked_though_it_had_none() -> None:
    replica, check = Pages(), SystemCheck()
    await check.run(replica, None)
    for _ in range(3):
        assert (await check.run(replica, None, out=True)).health is Health.UNKNOWN
    assert replica.asked == [*GENERIC, *["/health"] * 3]

    replica.pages["/health"] = UP
    assert (await check.run(replica, None, out=True)).health is Health.PASSED
    assert (await check.run(replica, None)).health is Health.PASSED


async def test_the_configured_path_comes_first() -> None:
    replica = Pages(up=UP)
    assert (await SystemCheck("/up").run(replica, "vllm")).health is Health.PASSED
    assert replica.asked == ["/up"]


@pytest.mark.parametrize(
    ("path", "status", "body", "health"),
    [
        ("/health", 200, b"", Health.PASSED),
        ("/health", 200, b'{"status":"ok"}', Health.PASSED),
        ("/", 200, b"Ollama is running", Health.PASSED),
        # llama.cpp, while it loads
        ("/health", 503, b'{"error":{"message":"Loading model","code":503}}', Health.FAILED),
        ("/health", 500, b"", Health.FAILED),
        ("/health", 429, b"", Health.UNKNOWN),
        ("/health", 400, b"", Health.UNKNOWN),
        ("/v2/health/ready", 400, b"", Health.FAILED),
        ("/v2/health/ready", 200, b"", Health.PASSED),
        ("/v2/health/ready", 200, b'{"ready":true}', Health.PASSED),
        ("/v2/health/ready", 200, b'{"ready":false}', Health.FAILED),
        ("/v2/health/ready", 200, b'{"live":false}', Health.FAILED),
        ("/v2/health/ready", 200, b"[" * 100_000, Health.PASSED),
    ],
)
def test_what_answers_mean(path: str, status: int, body: bytes, health: Health) -> None:
    finding = judged(status, body, path)
    assert finding is not None
    assert finding.health is health


@pytest.mark.parametrize("status", [401, 403])
def test_a_page_that_demands_credentials_says_nothing_but_that(status: int) -> None:
    finding = judged(status, b"", "/health")
    assert finding is not None
    assert (finding.health, finding.wants) == (Health.UNKNOWN, "headers")
    assert "health_checks.headers" in finding.why


@given(st.integers(100, 999), st.binary(max_size=50), st.sampled_from(GENERIC))
def test_any_answer_is_judged(status: int, body: bytes, path: str) -> None:
    finding = judged(status, body, path)
    assert finding is None or isinstance(finding, Finding)
    if 200 <= status < 300 and not path.startswith("/v2/"):
        assert finding == Finding(Health.PASSED)


def test_engines_that_generate_by_themselves() -> None:
    assert [generating_path(kind) for kind in ("sglang", "tensorrt_llm", "vllm", None)] == [
        *("/health_generate", "/health_generate", None, None)
    ]


async def test_what_the_fetch_raises_goes_through() -> None:
    async def dead(path: str) -> tuple[int, bytes]:
        raise anyio.BrokenResourceError

    with pytest.raises(anyio.BrokenResourceError):
        await SystemCheck().run(dead, None)
