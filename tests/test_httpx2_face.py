"""httpx2.py is client.py for the other library, and nothing else."""

from mlbalance_client import httpx2

from .generate_httpx2 import PACKAGE, generated


def test_it_is_generated() -> None:
    assert (PACKAGE / "httpx2.py").read_text() == generated(), "run python tests/generate_httpx2.py"


def test_its_clients_are_the_other_librarys() -> None:
    import httpx2 as library

    assert issubclass(httpx2.AsyncClient, library.AsyncClient)
    assert issubclass(httpx2.Client, library.Client)
    assert issubclass(httpx2.AsyncBalancerTransport, library.AsyncBaseTransport)
