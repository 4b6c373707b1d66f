"""A model for MLServer that doubles what it is given. It cannot be loaded while a file ``hold`` lies beside it."""

import asyncio
from pathlib import Path

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

HOLD = Path(__file__).with_name("hold")


class Doubling(MLModel):
    async def load(self) -> bool:
        while HOLD.exists():
            await asyncio.sleep(0.01)
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        numbers = self.decode(payload.inputs[0], default_codec=NumpyCodec)
        outputs = [NumpyCodec.encode_output("doubled", numbers * 2)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
