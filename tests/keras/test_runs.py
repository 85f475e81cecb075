"""The Keras adapter in processes of its own: other back ends, examples and documents."""

import re

import pytest

from tests.programs import ROOT, ended, printed_by

pytest.importorskip("keras")
pytest.importorskip("tensorflow")
pytest.importorskip("sklearn")


QUIET = {"CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}


BACK_END = """
import numpy as np, keras, tensorflow as tf
from learnit_r8 import R8Scheduler, predictions_of
from learnit_r8.keras import R8Callback, R8Dataset
from tests.drive import evidence_of
from tests.keras_common import X, Y, classifier, fit, scheduler

model, r8 = classifier(), scheduler(num_epochs=2, initial_lr=1e-9)
fit(model, R8Dataset(X, Y, r8), epochs=2)
found, said = evidence_of(r8), predictions_of(keras.ops.convert_to_numpy(model(X)), Y)
assert set(found["visits"]) == {2}
assert np.array_equal(found["given"], Y)
assert np.allclose(found["margin"], said.margin, atol=1e-3)

# Torch raises where a binary cross entropy would be NaN: in the first batch.
hurt = np.where(np.arange(len(X))[:, None] == 3, np.nan, X)
ends = []
for own, begin in ((True, 20), (True, 0), (False, 0)):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Input((X.shape[1],)), keras.layers.Dense(1, activation="sigmoid")])
    model.compile(keras.optimizers.SGD(0.1), "binary_crossentropy")
    planned = {"batch_size": 20, "num_epochs": 3, "initial_lr": 0.1}
    r8 = R8Scheduler(scheduler_mode="keep") if own else R8Scheduler(len(X), **planned)
    x, y = hurt[begin:], (Y[begin:] > 4).astype("float32")[:, None]
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(20) if own else R8Dataset(x, y, r8)
    model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[R8Callback(r8 if own else data)])
    r8.close()
    ends.append(model.get_weights())
    assert r8.sentry.num_refused == (0 if begin else 3 if own else 2), r8.summary()
assert "in quarantine: sample 3" in r8.summary()
assert all(map(np.array_equal, *ends[:2]))
print(keras.backend.backend())
"""


@pytest.mark.program
@pytest.mark.parametrize("back_end", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_other_back_ends(back_end, tmp_path):
    """Under JAX and torch too labels are judged; what else holds there is in `tests/contract/test_back_ends.py`."""
    pytest.importorskip(back_end)
    printed = printed_by(tmp_path, "-W", "ignore", "-c", BACK_END, KERAS_BACKEND=back_end, **QUIET)

    assert printed.split() == [back_end]


def test_without_keras(tmp_path):
    """Where Keras is not installed, the error names the extra."""
    code = "import sys; sys.modules['keras'] = None; import learnit_r8.keras"
    status, _, errors = ended(tmp_path, "-c", code)

    assert status == 1
    assert 'learnit_r8.keras needs Keras 3, which could not be imported; pip install ".[tensorflow]"' in errors


def code_lines(path):
    """The lines of a program without its docstring and blank ones."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines[1:] if line.strip()]


@pytest.mark.parametrize("name", ["keras_digits", "tf_custom_loop"])
def test_examples_differ_in_five_lines(name):
    """Each example has at most five lines that its plain version has not."""
    own, plain = code_lines(ROOT / "examples" / f"{name}.py"), code_lines(ROOT / "examples" / f"{name}_plain.py")

    assert len([line for line in own if line not in plain]) <= 5


PLAIN = [pytest.param(f"{name}_plain", marks=pytest.mark.slow) for name in ("keras_digits", "tf_custom_loop")]


@pytest.mark.program
@pytest.mark.parametrize("name", ["keras_digits", "keras_pipeline", "tf_custom_loop", *PLAIN])
def test_examples_train(name, tmp_path):
    """Each example, and its plain version, trains well."""
    printed = printed_by(tmp_path, ROOT / "examples" / f"{name}.py", **QUIET)

    assert float(re.search(r"test accuracy ([\d.]+)%", printed)[1]) > 93


@pytest.mark.program
def test_blocks_of_the_guide_run(tmp_path):
    """Every Python block of docs/keras.md runs as it stands, one after the other in one process."""
    text = (ROOT / "docs" / "keras.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    whole = "\n".join(f"exec({block!r}, {{'__name__': '__main__'}})" for block in blocks)

    assert len(blocks) >= 3
    printed_by(tmp_path, "-W", "ignore", "-c", whole, **QUIET)
