"""Events of a made-up run, by hand."""

import dataclasses

from learnit_r8 import events


def start(step=0, seconds=0.0, total=1000, **more):
    return events.RunStarted(step, seconds, "it", 100, 10, 10, total, None, "balanced", **more)


def steps(step, seconds, loss=1.0, num=1, **more):
    event = events.StepsDone(step, seconds, num, 0, step / 1000, loss, loss, loss, loss, 1.0, 0.1, 10 * num, 0)
    return dataclasses.replace(event, **more)
