"""The open inference protocol, version 2 (KServe, Triton, MLServer and others), and Triton's generate extension."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from math import prod
from urllib.parse import unquote

from .base import AnswerWatch, Reading, Sign
from .canonical import Canonical, encoded
from .fields import Fields, Unreadable, mapping, number, objects, parse, text
from .plain import read_bytes
from .watches import AnswerForm, watch_for

_PATH = re.compile(r"/v2/models/([^/]+)(?:/versions/[^/]+)?/(infer|generate|generate_stream)$")
_VALUE_BYTES = {"BOOL": 1, "INT8": 1, "UINT8": 1, "INT16": 2, "UINT16": 2, "FP16": 2, "BF16": 2,
                "INT64": 8, "UINT64": 8, "FP64": 8}  # fmt: skip
_OTHER_VALUE_BYTES = 4
_MOST_BYTES = 1 << 40
_LENGTH_BYTES = 4


def _content(kind: str, event: Fields) -> Sign:
    return Sign.CONTENT


# Neither tells usage, and a stream of generate has no closing mark: its last event is as good as any.
_FORM = AnswerForm(_content, lambda event: {}, lambda figures: None, lambda kind, event: bool(event))


class _ModelDialect:
    """An endpoint under ``/v2/models/{model}[/versions/{version}]``."""

    name: str
    verbs: tuple[str, ...]

    def matches(self, method: str, path: str) -> bool:
        """By the path's end."""
        found = _PATH.search(path) if method == "POST" else None
        return found is not None and found[2] in self.verbs

    def watch(self, reading: Reading, status: int, content_type: str) -> AnswerWatch:
        """Errors are read, nothing else."""
        return watch_for(_FORM, content_type)


class InferDialect(_ModelDialect):
    """``infer``: tensors. Work is bytes of input; only text (BYTES tensors) has a prefix to place by."""

    name = "kserve.infer"
    verbs = ("infer",)

    def read(self, path: str, body: bytes) -> Reading:
        """Never raises; what cannot be read is taken as bytes, its model from the path."""
        model = _model(path)
        try:
            fields, binary = _split(body)
            tensors = objects(fields.get("inputs"))
            if not tensors:
                raise Unreadable("there are no inputs")
            canonical = Canonical(fields, model)
            size = sum([_tensor(canonical, tensor, binary) for tensor in tensors])
        except (Unreadable, RecursionError):
            return read_bytes(body)
        if not canonical.text_bytes:
            canonical.hashed("body", body)
        return _stateful(
            canonical.reading(self.name), mapping(fields.get("parameters")), prompt_bytes=size
        )


class GenerateDialect(_ModelDialect):
    """Triton's ``generate`` and ``generate_stream``: text in, text out."""

    name = "triton.generate"
    verbs = ("generate", "generate_stream")

    def read(self, path: str, body: bytes) -> Reading:
        """Never raises; without ``text_input`` it is taken as bytes."""
