"""Writes the files beside it, with the code of 01c0f9e2 in its tree: ``python write_models.py FOLDER``."""

import random
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np


def main(out):
    """Write everything; the folder must not be there yet."""
    import torch
    from learnit_r8._adapters.driven_state import DrivenState
    from learnit_r8.state.model_loader import join_callbacks
    from learnit_r8.state.shared_memory import SharedBackups

    from learnit_r8.flax import save_checkpoint
    from learnit_r8.keras.state import ModelState as KerasState
    from learnit_r8.state.callbacks import Callbacks
    from learnit_r8.torch import ModelState, serialization
    from tests.saved_states import NEST, of_jax, of_keras, of_torch

    out.mkdir()
    model, optimizer = of_torch()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    state = ModelState(model, optimizer)
    own = Callbacks(state=lambda: NEST, load=lambda state: None)
    joined = join_callbacks(Callbacks(state.save, state.load, state.read), own)
    joined.save({"model": joined.state()}, str(out / "torch"))
    with mock.patch.object(serialization.importlib.util, "find_spec", return_value=None):
        joined.save({"model": joined.state()}, str(out / "torch.pt"))
    DrivenState(SimpleNamespace(state=(of_jax(), model))).save({}, out / "loop")
    save_checkpoint(of_jax(), out, 5)
    keras_state = KerasState(of_keras())
    keras_state.save({"model": keras_state.read()}, out / "keras.npz")
    backups = SharedBackups(out / "memory", out / "run", rank=0, num_ranks=1, note=print, is_default=False)
    content = {"run_id": "0" * 16, "model": None, "scheduler": {"num_draws": 3, "pace": {"step": 3}}, "config": {}}
    backed_up = {"model": model.state_dict(), "nest": NEST}
    backups.start_write(backed_up, content, step=3, kept=set(), proved=[], done=lambda: None)
    backups._thread.join()
    [generation] = out.rglob("gen_*.r8")
    generation.rename(out / "generation.r8")
    shutil.rmtree(out / "memory")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
