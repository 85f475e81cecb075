from learnit_r8.dashboard.render.curves import loss_columns
from learnit_r8.dashboard.state.view import View
from tests.dashboard.state.told import start, steps


def test_zoom_shows_single_steps():
    """The last epoch of a long run is drawn from the newest records, step by step."""
    view = View()
    view.fold(start(total=100_000))
    for step in range(1, 5001):
        view.fold(steps(step, float(step), loss=float(step % 10)))
    columns = loss_columns(view, 20, 4980, 5000)

    assert columns.mean.tolist() == [float(step % 10) for step in range(4981, 5001)]
    assert loss_columns(view, 5, 4980, 5000).high.tolist() == [4.0, 8.0, 9.0, 6.0, 9.0]
