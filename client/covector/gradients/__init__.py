"""Per-example gradients of transformers and PEFT models, projected to sketches. Needs the extra ``torch``."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401
    import transformers as _transformers  # noqa: F401
except ImportError as error:
    raise ImportError(
        f'covector.gradients needs torch and transformers ({error}): pip install "covector[torch]"', name=error.name
    ) from error

from covector.gradients.callback import GradientCallback
from covector.gradients.kronecker import Kronecker
from covector.gradients.model import GradientModel
from covector.gradients.sketch import CountSketch
from covector.gradients.whole import Whole

__all__ = ["CountSketch", "GradientCallback", "GradientModel", "Kronecker", "Whole"]
