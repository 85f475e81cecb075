import numpy as np

from learnit_r8.dashboard.render.curves import window
from learnit_r8.dashboard.state.ui_state import UiState
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps


def test_zoom_shows_single_steps():
    """The last epoch of a run of some thousand steps is drawn step by step, that of a long one in a hundred parts."""
    view = View()
    view.fold(start(total=30_000))
    for step in range(1, 5001):
        view.fold(steps(step, float(step), loss=float(step % 10)))
    shown = view.loss.columns(20, 4980, 5000)

    assert shown.mean.tolist() == [float(step % 10) for step in range(4981, 5001)]
    assert view.loss.columns(5, 4980, 5000).high.tolist() == [4.0, 8.0, 9.0, 6.0, 9.0]
    for step in range(5001, 30_001):
        view.fold(steps(step, float(step), loss=float(step)))
    first, last = window(view, UiState(zoom="last 10%"))
    assert len(np.unique(view.loss.columns(200, first, last).mean)) == 200
