"""The code of a model in MLflow, see model.py. MLflow runs this file by itself; the package lies beside it."""

from __future__ import annotations

import base64
import binascii
import io
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from ram_tune.data.images import load_image
from ram_tune.errors import BadInput
from ram_tune.search.model import answers, read


class ServedModel(PythonModel):
    """A column `image` of encoded images (bytes, or base64 of them) → see `answers`."""

    def load_context(self, context: Any) -> None:
        self.trained = read(Path(context.artifacts["content"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> Any:
        limit = self.trained.config.data.max_image_pixels
        return answers(self.trained, [_decoded(row, cell, limit) for row, cell in enumerate(model_input["image"])])


def _decoded(row: int, cell: str | bytes, max_pixels: int) -> Any:
    try:
        content = base64.b64decode(cell, validate=True) if isinstance(cell, str) else cell
        return load_image(io.BytesIO(content), max_pixels)  # type: ignore[arg-type]  # Pillow takes either
    except (BadInput, binascii.Error, TypeError) as error:
        found = error.found if isinstance(error, BadInput) else str(error)
        raise BadInput(f"image {row}", found=found, expected="a JPEG, PNG, …, its bytes or base64 of them") from error


set_model(ServedModel())
