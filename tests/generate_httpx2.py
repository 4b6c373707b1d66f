"""Writes mlbalance_client/httpx2.py from client.py: the same face for the other library. Run as a script."""

from pathlib import Path

_IMPORT = """\
try:
    import httpx2 as library
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError(
        "mlbalance_client.httpx2 needs the package httpx2: install mlbalance-client with the extra [httpx2]"
    ) from missing
"""
PACKAGE = Path(__file__).parent.parent / "mlbalance_client"


def generated() -> str:
    """What httpx2.py must be."""
    text = (PACKAGE / "client.py").read_text()
    first, _, rest = text.partition("\n")
    first = '"""The httpx2 face. Generated from ``client.py`` by tests/generate_httpx2.py; do not edit."""'
    rest = rest.replace("import httpx as library\n", _IMPORT)
    return f"{first}\n{rest}"


if __name__ == "__main__":
    (PACKAGE / "httpx2.py").write_text(generated())
