"""The head of the screen: title, state, progress, loss, rate and speed."""

from __future__ import annotations

import math

import numpy as np

from ...events.text import clean, clock, number, share
from ..state.run_state import shown_state
from ..state.ui_state import Scene, UiState
from ..state.view import View
from ..text import Line, Span, bar, clip, joined, labelled, right, size_of
from ..theme import Theme

WIDE = 100
NARROW = 60


def title_line(view: View, ui: UiState, width: int, theme: Theme, scene: Scene) -> Line:
    """Program, run, epoch, step, and the state word at the right."""
    state = shown_state(view, scene)
    word = f"{theme.glyphs.dot} {state.word}"
    end: list[Span] = [Span(word, state.style), Span(" ")]
    if ui.frozen:
        end.insert(0, Span("FROZEN  ", "warn"))
    if view.backups_off and view.ended is None and width >= NARROW:
        end.insert(0, Span("BACKUPS OFF  ", "warn"))
    if ui.mode != "live" and width >= NARROW:
        end.insert(0, Span(f"{ui.mode}  ", "label"))
    if state.detail and width >= WIDE:
        end.insert(len(end) - 1, Span(f" {clip(state.detail, 30, theme.glyphs.ellipsis)}", "label"))
    room = width - size_of(end) - 1
    name = clean(view.run.name, 60) if view.run else ""
    parts: list[Line] = [
        (Span("learnit::r8" if width >= NARROW else "r8", "title"),),
        (Span(clip(name, max(8, room - 50), theme.glyphs.ellipsis), "value"),) if name else (),
        labelled("epoch", view.epoch_text, ""),
        labelled("step", view.step_text, ""),
    ]
    if view.run is not None and width >= WIDE:
        parts += [
            labelled("samples", f"{view.run.num_samples:,}", "") if view.run.num_samples else (),
            labelled("batch", f"{view.run.batch_size:,}", "") if view.run.batch_size else (),
            labelled("policy", clean(view.run.policy, 20), ""),
        ]
    return right((Span(" "), *joined(parts, room - 1)), tuple(end), width)


def total_line(view: View, width: int, theme: Theme, scene: Scene) -> Line:
    """Progress of the run, and the time left."""
    now = scene.now if scene.now is not None else view.seconds
    left = view.time_left(now)
    is_over = view.ended is not None or scene.left
    notes = [labelled("left", clock(left))] if not is_over else []
    if width >= WIDE:
        notes.append(labelled("elapsed", clock(now), ""))
    head = " total " if width >= 30 else " "
    room = min(44 if width >= WIDE else 31 if width >= NARROW else 20, max(0, width - len(head) - 6))
    per_cent = Span(f" {share(view.progress):>6}  ", "value")
    rest = joined(notes, room - len(per_cent.text))
    return (Span(head, "label"), *bar(view.progress, max(1, width - len(head) - room), theme.glyphs), per_cent, *rest)


INCIDENT_SECONDS = 60.0
"""How long the sentence of an incident stays after its last event."""


def incident_line(view: View, width: int, theme: Theme, scene: Scene) -> Line:
    """The last incident in one sentence, as long as it lasts and a minute longer; nothing else."""
    newest = view.incidents[-1] if view.incidents else None
    now = scene.now if scene.now is not None else view.seconds
    if newest is None or (newest.state == "over" and now - newest.last_seconds > INCIDENT_SECONDS):
        return ()
    found = f"; {newest.found}" if newest.state != "open" else ""
    text = clip(clean(f"{newest.headline}{found}"), width - 2, theme.glyphs.ellipsis)
    return Span(" "), Span(text, "good" if newest.state == "over" else "alert")


def loss_line(view: View, width: int) -> Line:
    """The loss: newest, smoothed and best; the learning rate and its recovery factor."""
    last = view.last
    parts = [
        labelled("loss", number(last.last_loss) if last else "-"),
        labelled("smooth", number(view.ema) if last else "-", "loss"),
        labelled("best", f"{number(view.best.value)} @{view.best.step:,}", "") if view.best else (),
        rate_part(view),
    ]
    return (Span(" "), *joined(parts, width - 1))


def rate_part(view: View) -> Line:
    """The learning rate, with the factor of recovery on the schedule."""
    if view.last is None or math.isnan(view.last.lr):
        return ()
    rate, plan = view.last.lr, view.lr_plan
    planned = np.interp(view.progress, np.linspace(0, 1, len(plan)), plan) if len(plan) > 1 else math.nan
    parts = labelled("lr", number(rate), "lr")
    if math.isfinite(planned) and planned > 0 and rate < 0.97 * planned:
        parts = (*parts, Span(f" = plan {number(planned)} x{rate / planned:.2g}", "warn"))
    return parts


def speed_line(view: View, width: int, scene: Scene) -> Line:
    """Samples a second, the parts of a step's time, overhead (scheduler, listeners, screen), suspicion, refusals."""
    pacing = view.pacing
    each = pacing.seconds_per_step
    parts: list[Line] = []
    if math.isfinite(pacing.samples_per_second):
        parts.append((Span(number(round(pacing.samples_per_second, 1)), "value"), Span(" samples/s", "label")))
    if math.isfinite(each):
        parts.append(_step_part(view, each))
    costs = [cost for cost in (pacing.own_share, scene.ui_share) if math.isfinite(cost)]
    if costs:
        parts.append(labelled("overhead", share(sum(costs)), ""))
    near = view.last.suspicion if view.last is not None else -1.0
    # A low one only where there is room.
    if (0 if width >= WIDE else 0.25) <= near <= 1:
        style = "alert" if near >= 0.5 else "warn" if near >= 0.25 else ""
        parts.append(labelled("suspicion", share(near, 0), style))
    if view.num_refused:
        parts.append(labelled("refused", str(view.num_refused), "warn"))
    return (Span(" "), *joined(parts, width - 1))


def _step_part(view: View, each: float) -> Line:
    """The time of a step and its parts: data, training, scheduler."""
    own, data = view.pacing.own_share, view.pacing.data_share
    unit, size = ("s", 1.0) if each >= 1 else ("ms", 1e-3) if each >= 1e-3 else ("us", 1e-6)
    whole = labelled("step", f"{_digits(each / size)} {unit}", "")
    if not math.isfinite(own):
        return whole
    # Where the wait for data is not measured, it is part of the user's time.
    rest = f"data {_digits(each * data / size)} + train" if data > 0 else "yours"
    train = _digits(each * max(0.0, 1 - own - data) / size)
    return (*whole, Span(f" = {rest} {train} + r8 {_digits(each * own / size)}", "label"))


def _digits(value: float) -> str:
    """Return a time with at most three digits.

    >>> _digits(311.4), _digits(20.34), _digits(1.9), _digits(0.004)
    ('311', '20', '1.9', '<.1')
    """
    if value >= 9.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.05 or value == 0 else "<.1"


def metric_line(view: View, width: int, theme: Theme) -> Line:
    """The newest values of the user's metrics."""
    parts = []
    for name, points in view.metrics.items():
        newest = labelled(clip(name, 24, theme.glyphs.ellipsis), number(points[-1].value), "metric")
        values = [point.value for point in points]
        ends = f" ({number(min(values))} .. {number(max(values))})" if len(points) > 1 else ""
        parts.append((*newest, Span(ends, "label")))
    return (Span(" "), *joined(parts, width - 1)) if parts else ()
