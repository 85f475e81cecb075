"""The trainings whose files lie in tests/state/saved_01c0f9e2, with the values that they had then."""

import numpy as np

NEST = {"a": [1, (2.5, None)], 7: np.arange(3.0), "b": np.float32(1.5), "on": True}


def of_torch():
    """A model of torch after one step of Adam."""
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).bfloat16()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    for place, each in enumerate(model.parameters()):
        each.data.copy_(torch.arange(each.numel()).reshape(each.shape) + place)
        each.grad = torch.ones_like(each)
    optimizer.step()
    return model, optimizer


def of_jax():
    """A nest with a key, arrays of three kinds, a number and a text."""
    import jax

    return {
        "w": jax.numpy.arange(6.0).reshape(2, 3),
        "half": jax.numpy.arange(3, dtype="bfloat16"),
        "key": jax.random.key(5),
        "nest": (NEST["a"], {"step": 3, "name": "it"}),
    }


def of_keras():
    """A model of Keras with its optimizer."""
    import keras

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Dropout(0.5, seed=1)])
    model.compile(optimizer=keras.optimizers.SGD(0.125, momentum=0.5))
    model.optimizer.build(model.trainable_variables)
    for place, each in enumerate([*model.trainable_variables, *model.optimizer.variables[2:]]):
        each.assign(np.arange(each.shape[0] if len(each.shape) == 1 else 6.0).reshape(each.shape) + place)
    return model
