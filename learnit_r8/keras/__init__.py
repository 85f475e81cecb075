"""Keras 3 and TensorFlow: data-aware ``model.fit``, and custom loops under ``tf.function``.

>>> from learnit_r8.keras import R8Callback, R8Dataset  # doctest: +SKIP
>>> dataset = R8Dataset(x, y, r8)  # doctest: +SKIP
>>> model.fit(dataset, epochs=5, shuffle=False, callbacks=[R8Callback(dataset)])  # doctest: +SKIP
"""

from __future__ import annotations

from .._validation import how_to_install, import_needed

import_needed("keras", "learnit_r8.keras needs Keras 3", how_to_install("tensorflow"))

from .callback import R8Callback
from .dataset import R8Dataset, SamplePipeline
from .loops import Batches, batch_dataset
from .losses import predictions_of, sample_losses
from .state import ModelState, model_callbacks

__all__ = [
    "Batches",
    "ModelState",
    "R8Callback",
    "R8Dataset",
    "SamplePipeline",
    "batch_dataset",
    "model_callbacks",
    "predictions_of",
    "sample_losses",
]
