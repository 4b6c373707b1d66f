"""The open inference protocol, version 2 (KServe, Triton, MLServer and others), and Triton's generate extension."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from json import JSONDecoder
from math import prod
from urllib.parse import unquote

from .base import AnswerWatch, ModelCheck, Reading, Sign
from .canonical import Canonical
from .fields import Fields, Unreadable, mapping, number, objects, parse, text
from .plain import read_bytes
from .watches import AnswerForm, watch_for

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/(infer|generate|generate_stream)$")
_VALUE_BYTES = {
    "BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2, "INT32": 4, "UINT32": 4,
    "FP32": 4, "INT64": 8, "UINT64": 8, "FP64": 8,
}  # fmt: skip
_MOST_DIMENSIONS = 32
_MOST_BYTES = 1 << 40
_LENGTH_BYTES = 4

# No usage anywhere, and a generated stream has no closing mark: its last event is as good as any.
_FORM = AnswerForm(
    sign=lambda kind, event: Sign.CONTENT,
    figures=lambda event: {},
    usage=lambda figures: None,
    ends=lambda kind, event: bool(event),
)


class _ModelDialect:
    """An endpoint under ``/v2/models/{model}[/versions/{version}]``."""

    name = ""
    verbs: frozenset[str] = frozenset()

    def matches(self, method: str, path: str) -> bool:
        """POST to a path that ends with the endpoint's."""
        found = _PATH.search(path) if method == "POST" else None
        return found is not None and found[2] in self.verbs

    def read(self, path: str, body: bytes) -> Reading:
        """Read a request; a body that is not of the endpoint's form is taken as bytes, its model from the path."""
        found = _PATH.search(path)
        model = unquote(found[1]) if found else None
        try:
            reading, parameters = self._read(model, path, body)
        except (Unreadable, RecursionError):
            return read_bytes(body)._replace(model=model)
        # A sequence has its state on one replica (Triton's sequence extension).
        sequence = parameters.get("sequence_id")
        return reading._replace(session=str(sequence), replayable=False) if sequence else reading

    def watch(self, status: int, content_type: str) -> AnswerWatch:
        """Errors are read, nothing else."""
        return watch_for(_FORM, content_type)

    def model_check(self, path: str, model: str | None) -> ModelCheck | None:
        """The model's readiness, which costs no work; what its tensors must be like is unknown. Triton says 400."""
        found = _PATH.search(path)
        if found is None:
            return None
        return ModelCheck("GET", path[: found.end(1)] + "/ready", not_ready=frozenset({400}))

    def _read(self, model: str | None, path: str, body: bytes) -> tuple[Reading, Fields]:
        raise NotImplementedError


class InferDialect(_ModelDialect):
    """``infer``: tensors. Work is bytes of input; only text (BYTES tensors) has a prefix to place by."""

    name = "kserve.infer"
    verbs = frozenset({"infer"})

    def _read(self, model: str | None, path: str, body: bytes) -> tuple[Reading, Fields]:
        fields, binary = _split(body)
        tensors = list(_tensors(fields, binary))
        if not tensors:
            raise Unreadable("there are no inputs")
        canonical = Canonical(fields, model)
        for tensor in tensors:
            for string in tensor.texts:
                canonical.text(tensor.name, string)
        if not canonical.text_bytes:
            canonical.hashed("body", body)
        size = min(sum(tensor.size for tensor in tensors), _MOST_BYTES)
        reading = canonical.reading(self.name)._replace(prompt_bytes=size)
        return reading, mapping(fields.get("parameters"))


class GenerateDialect(_ModelDialect):
    """Triton's ``generate`` and ``generate_stream``: text in, text out."""

    name = "triton.generate"
    verbs = frozenset({"generate", "generate_stream"})

    def _read(self, model: str | None, path: str, body: bytes) -> tuple[Reading, Fields]:
        fields = parse(body)
        parameters = mapping(fields.get("parameters")) | fields
        given = fields.get("text_input")
        canonical = Canonical(fields, model)
        for string in given if isinstance(given, list) else [given]:
            if not isinstance(string, str):
                raise Unreadable("text_input is no text")
            canonical.text("prompt", string)
        reading = canonical.reading(
            self.name, output_limit=number(parameters.get("max_tokens")), streaming=path.endswith("_stream")
        )
        return reading, parameters


@dataclass(frozen=True, slots=True)
class _Tensor:
    """An input: its texts, if it is all text, and its size in bytes."""

    name: str
    texts: list[str]
    size: int


def _split(body: bytes) -> tuple[Fields, memoryview]:
    """The JSON object and, after it, what follows in the binary data extension."""
    if fields := parse(body):
        return fields, memoryview(b"")
    try:
        # Latin-1 maps bytes to characters one to one, so that the decoder's position is a position in the body.
        _, end = JSONDecoder().raw_decode(body.decode("latin-1"))
    except ValueError:
        raise Unreadable("the body does not begin with a JSON object") from None
    return parse(body[:end]), memoryview(body)[end:]


def _tensors(fields: Fields, binary: memoryview) -> Iterator[_Tensor]:
    at = 0
    for tensor in objects(fields.get("inputs")):
        name, is_bytes = text(tensor.get("name")) or "input", tensor.get("datatype") == "BYTES"
        size = number(mapping(tensor.get("parameters")).get("binary_data_size"))
        if size is not None:
            texts = _decoded(_elements(binary[at : at + size])) if is_bytes else []
            at += size
        else:
            texts = [each for each in _flat(tensor.get("data")) if isinstance(each, str)] if is_bytes else []
            size = sum(map(len, texts)) if is_bytes else _values(tensor.get("shape")) * _width(tensor)
        yield _Tensor(name, texts, size)


def _elements(data: memoryview) -> Iterator[bytes]:
    """BYTES in binary form: each a little-endian length in four bytes, then as many bytes."""
    at = 0
    while at + _LENGTH_BYTES <= len(data):
        start = at + _LENGTH_BYTES
        at = start + int.from_bytes(data[at:start], "little")
        yield bytes(data[start:at])


def _decoded(elements: Iterator[bytes]) -> list[str]:
    try:
        return [element.decode() for element in elements]
    except UnicodeDecodeError:
        return []


def _flat(data: object) -> Iterator[object]:
    if isinstance(data, list):
        for each in data:
            yield from _flat(each)
    else:
        yield data


def _values(shape: object) -> int:
    if not isinstance(shape, list) or len(shape) > _MOST_DIMENSIONS:
        return 0
    return prod(number(each) or 0 for each in shape)


def _width(tensor: Fields) -> int:
    kind = tensor.get("datatype")
    return _VALUE_BYTES.get(kind, 4) if isinstance(kind, str) else 4


DIALECTS = (InferDialect(), GenerateDialect())
