"""KServe's open inference protocol, version 2, as Triton, MLServer and others serve it."""

from __future__ import annotations

import re
from typing import Any

from .base import AnswerWatch, Reading
from .canonical import canonical_json
from .plain import BytesDialect
from .watches import WholeWatch, parse

_PATH = re.compile(r"/v2/models/(?P<model>[^/]+)(?:/versions/[^/]+)?/(?:infer|generate|generate_stream)$")
_BYTES_PER_VALUE = 4


class KServeDialect:
    """``POST .../v2/models/{model}[/versions/{version}]/infer`` (and Triton's ``generate``).

    Work is the number of values in all inputs (the product of each shape), four bytes each, or the body's size
    where shapes are missing, as in Triton's binary form.
    """

    name = "kserve.infer"

    def matches(self, method: str, path: str) -> bool:
        """By the path's end."""
        return method == "POST" and _PATH.search(path) is not None

    def read(self, path: str, body: bytes) -> Reading:
        """Never raises; a binary body is taken as bytes, its model from the path."""
        found = _PATH.search(path)
        model = found["model"] if found else None
        fields = parse(body)
        head = f"model\n{model}\n".encode("utf-8", "surrogatepass")
        text = fields.get("text_input")
        if isinstance(text, str):
            data = text.encode("utf-8", "surrogatepass")
            return Reading(self.name, model, head + b"prompt\n" + data + b"\n", len(data))
        values = sum(_values(tensor) for tensor in fields.get("inputs") or () if isinstance(tensor, dict))
        if not values:
            plain = BytesDialect().read(path, body)
            return Reading(self.name, model, plain.prompt, plain.prompt_bytes, token_work=False)
        prompt = head + canonical_json(fields["inputs"]).encode("utf-8", "surrogatepass")
        return Reading(self.name, model, prompt, values * _BYTES_PER_VALUE, token_work=False)

    def watch(self, reading: Reading, status: int, content_type: str) -> AnswerWatch:
        """Nothing is read from the answer."""
        return WholeWatch(None)


def _values(tensor: dict[str, Any]) -> int:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not all(isinstance(n, int) and 0 < n < 1 << 31 for n in shape):
        return 0
    product = 1
    for n in shape:
        product = min(product * n, 1 << 40)
    return product
