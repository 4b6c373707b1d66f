"""The fingerprint is binding: computed here from the specification, beside literal golden values."""

import re
from hashlib import blake2b
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64

from mlbalance_client.core.fingerprint import fingerprint

DOC = Path(__file__).parents[2] / "docs" / "fingerprint.md"


def sample(size: int) -> bytes:
    """Bytes 0, 1, 2, ... modulo 251, as the document says."""
    return bytes(i % 251 for i in range(size))


def by_the_book(data: bytes, secret: bytes | None = None) -> tuple[list[int], int]:
    def h(x: bytes) -> int:
        if secret is None:
            return xxh3_64(x).intdigest()
        return int.from_bytes(blake2b(x, digest_size=8, key=secret).digest(), "little")

    chain: list[int] = []
    for start in range(0, len(data) // 1024 * 1024, 1024):
        before = chain[-1].to_bytes(8, "little") if chain else b""
        chain.append(h(before + data[start : start + 1024]))
    tail = data[len(chain) * 1024 :]
    if not chain:
        return [], h(tail)
    return chain, h(chain[-1].to_bytes(8, "little") + tail) if tail else chain[-1]


@given(st.binary(max_size=5000), st.one_of(st.none(), st.binary(min_size=1, max_size=64)))
def test_it_is_what_the_specification_says(data: bytes, secret: bytes | None) -> None:
    print_ = fingerprint(data, secret)

    assert (list(print_.chain), print_.whole) == by_the_book(data, secret)
    assert print_.size_bytes == len(data)


VECTORS = re.findall(r"^\| (\d+) \| `(\w*)` \| (.*?) \| `(\w{16})` \|$", DOC.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("size", "secret", "chain", "whole"), VECTORS)
def test_golden_vectors_of_the_document(size: str, secret: str, chain: str, whole: str) -> None:
    print_ = fingerprint(sample(int(size)), secret.encode() or None)

    assert [f"{h:016x}" for h in print_.chain] == re.findall(r"\w{16}", chain)
    assert f"{print_.whole:016x}" == whole


def test_the_document_has_vectors_of_every_kind() -> None:
    assert {int(v[0]) for v in VECTORS} >= {0, 1023, 1024, 1025, 5000}
    assert any(v[1] for v in VECTORS)


@given(st.binary(min_size=2048, max_size=4096), st.binary(max_size=1000))
def test_prompts_with_the_same_beginning_share_the_beginning_of_the_chain(head: bytes, tail: bytes) -> None:
    blocks = len(head) // 1024

    assert fingerprint(head + tail).chain[:blocks] == fingerprint(head).chain
