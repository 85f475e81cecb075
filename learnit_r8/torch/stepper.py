"""The stepper: ``backward()``, clipping, loss scaling and the optimizer's step, over one micro-batch or several."""

from __future__ import annotations

import functools
import inspect
import math
import platform
import re
import weakref
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel

from .._validation import is_number
from ..bridge.group_rates import plain_optimizer, put_rate
from ..bridge.host import expect_rivals
from ..recovery.policy import DEAD_EVERY
from ..sources.random_generators import set_random_state, state_of
from ..state.callbacks import CLIP
from .distributed.shards import clip_shards, is_shard
from .prepared import inner_optimizers

if TYPE_CHECKING:
    from ..recovery.rate_limit import NormLimit
    from ..scheduler import R8Scheduler
    from .flight.hand import Hand
    from .lr_scheduler import ScheduleWatch

_RUNS: weakref.WeakKeyDictionary[Any, weakref.ref[R8Scheduler]] = weakref.WeakKeyDictionary()
"""The runs that optimizers were attached to last."""

ATTACHED_AGAIN = (
    "attach() was called again for an optimizer whose run has begun and is not over, so another run begins at step 0: "
    "call it once, before the loop over epochs; or close() the first run, if it is to end there."
)

NO_STEP = (
    "the optimizer that attach() got took no step with a gradient in an epoch: another optimizer, or another model "
    "than its own, is trained, whose rate is not set and whose state is not saved; attach these two once both are made."
)

NOT_CLIPPED = (
    "max_grad_norm={0:g} has no effect: your loop takes the optimizer's steps, and only adapter.step(loss) clips. Call "
    "torch.nn.utils.clip_grad_norm_(model.parameters(), {0:g}) before optimizer.step()."
)

ACCUMULATES = (
    "the optimizer took a step at every {0} reports so far: if it adds up the gradients of {0} batches, give "
    "attach(..., accumulate={0}), so that no backup is taken and no weights are tested between them."
)
NO_STEP_SINCE = (
    "the optimizer that attach() got has taken no step for {} good batches: if another one is trained, as one that is "
    "made anew in each epoch, its state is neither restored nor saved, so keep the first (optimizer.state.clear() "
    "empties it); if gradients are added up over so many batches, give attach(..., accumulate=...)."
)
BATCHES_WITHOUT_STEP = 64
"""Good batches without a step after which that is said, looked at as often; more than are mostly added up."""

NAN_GRADIENTS = (
    "A root, a logarithm or a division that is not defined gives such a gradient even where torch.where() or a mask "
    "leaves out its value: clamp what goes into it. torch.autograd.set_detect_anomaly(True) names the operation."
)

STEPS_LOOKED_AT, STEPS_ALIKE = 16, 3
"""Steps of the optimizer whose distance in reports is looked at; equal distances that are no chance."""


class Stepper:
    """Computes, accumulates and clips gradients, and takes the optimizer's steps.

    Attributes:
        accumulate: As given.
        adds_later: Whether the gradient of the batch whose loss is reported is computed after that, if it is at all.
        counted: The optimizer whose steps are counted; None where none are.
        knows_distance: Whether it is known how many reports come before a step.
        stepped_at: Updates at the last step that was counted; None before.
        is_adding: Whether the next batch's gradient is added to others, so that nothing is done before it.
        max_norm: Longest gradient, as given.
        is_scaled: Whether losses are scaled, so that a gradient may overflow.
        can_begin_anew: Whether a gradient can be computed once more: it is that of one batch, and nothing skips its
            step.

    Args:
        optimizer: Takes the step.
        scaler: A `torch.amp.GradScaler`, or None.
        accumulate: Batches whose gradients are added up for one step, >= 1.
        max_grad_norm: Longest gradient, > 0; None does not clip.

    Raises:
        ValueError: ``max_grad_norm`` is not a number > 0.
    """

    def __init__(
        self,
        optimizer: Any,
        *,
        scaler: Any,
        accumulate: int,
        max_grad_norm: float | None,
    ) -> None:
        if max_grad_norm is not None and not (is_number(max_grad_norm) and max_grad_norm > 0):
            raise ValueError(f"max_grad_norm must be a number > 0 or None, got {max_grad_norm!r}.")
        self._optimizer, self.accumulate, self.max_norm = optimizer, accumulate, max_grad_norm
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.is_scaled = self._scaler is not None
        self._is_sharded = any(map(is_shard, self._parameters()))
        self.can_begin_anew = self._scaler is None and accumulate == 1 and not self._is_sharded
        self._num_added = 0
        self.is_adding = self.adds_later = self._is_sparse = False
        self._last_gradients: list[torch.Tensor | None] = []
        self._plain = plain_optimizer(optimizer)
        self._norms: NormLimit | None = None
        self._clears_itself = getattr(type(self._plain), "zero_grad", None) is not torch.optim.Optimizer.zero_grad
        self._has_stepped, self._first_step = False, None
        self.counted: Any = None
        self._distances: Counter[int] = Counter()
        self.knows_distance = self._hears_steps = False
        self.stepped_at: int | None = None
        self._seen: list[int] = []
        if accumulate > 1:
            # However the step comes about, in a loop of the user's own too.
            self._plain.register_step_post_hook(lambda *_: self._note_step())

    def note_run(self, r8: R8Scheduler) -> None:
        """Warn if the optimizer's run before is still under way, as where attach() stands within its loop."""
        before = _RUNS[self._plain]() if self._plain in _RUNS else None
        is_under_way = before is not None and before.global_step and not (before.is_over or before.pace.is_closed)
        if before is not r8 and is_under_way:
            r8.host.say_once("attached again", ATTACHED_AGAIN)
        _RUNS[self._plain] = weakref.ref(r8)
        self._norms = r8.controller.norms

    def watch_first_epoch(self) -> None:
        """Note from now on whether the optimizer takes a step, until `check_first_epoch`."""
        # What accelerate wraps around an optimizer has no hooks of its own.
        register = getattr(self._plain, "register_step_post_hook", None)
        self._first_step = None if register is None else register(self._note_first_step)

    def count_steps(self) -> None:
        """Have the steps of the optimizer counted from now on, unless it was said how many batches each takes."""
        # One that holds another, as SAM does, takes no step itself.
        stepping = next(iter(inner_optimizers(self._optimizer).values()), self._plain)
        if self.accumulate == 1 and hasattr(stepping, "register_step_pre_hook"):
            self.counted = stepping
            # A class that does not call `Optimizer.__init__` has hooks that are never called.
            self._hears_steps = getattr(type(stepping).step, "hooked", False)

    def note_distance(self, r8: R8Scheduler, updates: int, before: int) -> None:
        """Say once if each step of the optimizer comes after several reports; called at its first ones."""
        distances = self._distances
        distances[updates - before] += 1
        # What is left over at the end of an epoch makes others.
        number, count = distances.most_common(1)[0]
        if number > 1 and count == STEPS_ALIKE:
            r8.host.say_once("accumulates", ACCUMULATES.format(number))
        self.knows_distance = distances[1] > 0 or distances.total() == STEPS_LOOKED_AT

    def check_steps(self, r8: R8Scheduler) -> None:
        """Say once if the optimizer has taken no step for long; called at every 64th loss of own batches."""
        updates = r8.controller.lineage.updates
        if self.stepped_at is None:
            self.stepped_at = updates
        elif self._hears_steps and updates - self.stepped_at >= BATCHES_WITHOUT_STEP:
            r8.host.say_once("no step", NO_STEP_SINCE.format(updates - self.stepped_at))

    def _note_first_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._has_stepped = self._has_stepped or any(
            parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]
        )

    def check_first_epoch(self, r8: R8Scheduler) -> None:
        """Say so if the optimizer has taken no step in the epoch that is over; called as each one ends."""
        if self._first_step is None:
            return
        # Not within the step, which goes through its hooks then.
        self._first_step.remove()
        self._first_step = None
        if not self._has_stepped and r8.global_step > r8.sentry.num_refused:
            r8.host.say_once("no step", NO_STEP)

    def _note_step(self) -> None:
        self._num_added = 0
        self.is_adding = False

    def norm(self) -> torch.Tensor:
        """0-dim, a norm of the gradient that is not finite if the gradient is not."""
        return _norm_of([each.grad for each in self._parameters() if each.grad is not None])

    @property
    def advice(self) -> str:
        """What to do about updates that are too large."""
        if self.max_norm is not None:
            return f"lower max_grad_norm={self.max_norm:g}, or the rate"
        return (
            f"{CLIP}: pass max_grad_norm=1.0 to attach() if step() takes your steps (Lightning: gradient_clip_val=1.0; "
            "the Trainer of transformers does so by default), or call "
            "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before an optimizer.step() of your own"
        )

    def backward(self, loss: torch.Tensor, *, is_last: bool) -> bool:
        """Add the gradient of a loss.

        Args:
            loss: 0-dim.
            is_last: Whether it is the last one of an epoch, after which none is added.

        Returns:
            Whether the step is due.

        Raises:
            TypeError: the optimizer evaluates the loss by itself, several times a step; or the loss is not a tensor.
        """
        if not isinstance(loss, torch.Tensor):
            raise TypeError(f"loss must be the tensor that loss() returned, or one made of it, got {loss!r}.")
        if isinstance(self._optimizer, torch.optim.LBFGS):
            raise TypeError(
                f"optimizer must take a step without a closure, got {type(self._optimizer).__name__}; call "
                "report(losses) in place of loss() and step(), and optimizer.step(closure) if its outcome is true."
            )
        if not loss.requires_grad:
            raise ValueError(
                "loss must come from the model with its graph, so that backward() can go through it, got a tensor that "
                "requires no gradient: compute it from the outputs without detach(), item() or no_grad(), and with "
                "parameters that require gradients."
            )
        self._last_gradients = []
        loss = loss / self.accumulate if self.accumulate > 1 else loss
        try:
            (loss if self._scaler is None else self._scaler.scale(loss)).backward()
        except RuntimeError as error:
            if "backward through the graph a second time" not in str(error):
                raise
            raise RuntimeError(
                "step(loss) calls backward() itself: take loss.backward() out of the loop, and optimizer.step() and "
                "zero_grad() with it. To keep them, call report(losses) in place of loss() and step()."
            ) from error
        self._num_added += 1
        return is_last or self._num_added >= self.accumulate

    def clip(self) -> torch.Tensor | None:
        """Clip the gradient, at ``max_grad_norm`` or what recovery asks for, whichever is lower.

        Returns:
            Its norm before that, on its device; None where nothing is clipped.
        """
        most, norms = self.max_norm, self._norms
        if norms is not None:
            norms.is_used = True
        if most is None and not (norms is not None and norms.is_on):
            return None
        if self._scaler is not None:
            self._scaler.unscale_(self._optimizer)
        most = min(math.inf if most is None else most, math.inf if norms is None else norms.most)
        if self._is_sharded:
            return clip_shards(self._parameters(), most)
        parameters = self._parameters()
        if not self._is_sparse:
            try:
                return torch.nn.utils.clip_grad_norm_(parameters, most)
            except NotImplementedError:
                # It measures dense gradients only, and says so before it has changed any. Asking each one first takes
                # longer where all are dense.
                self._is_sparse = True
        return torch.nn.utils.clip_grad_norm_(list(map(_values_of, parameters)), most)

    def gradient_sizes(self) -> tuple[list[int], int]:
        """See `RecoveryController.note_gradients`; each gradient is read, so it had better be in main memory."""
        gradients: list[torch.Tensor | None] = []
        for each in self._parameters():
            given = each.grad if each.requires_grad else None
            # An empty one has no largest number.
            gradients.append(None if given is None or given.is_sparse or not given.numel() else given)
        alive = [0 if each is None else int(each.count_nonzero()) for each in gradients]
        # Zeros that are left from an earlier step, of layers that are not trained now, or that the loop has written
        # itself, are no finding: such a gradient was written to more or less often than others since the last look.
        versions = [-1 if each is None else each._version for each in gradients]
        before = self._seen if len(self._seen) == len(versions) else [-1] * len(versions)
        self._seen = versions
        # One that was set to None is written to as often in each step; one that is kept counts on.
        writes = [now - old if now > old >= 0 else now for now, old in zip(versions, before, strict=True)]
        usual = {count for count, number in zip(writes, alive, strict=True) if number}
        sizes = []
        for gradient, number, count in zip(gradients, alive, writes, strict=True):
            size = 0 if gradient is None else gradient.numel()
            sizes.append(size if number else -size if count in usual else 0)
        return sizes, sum(alive)

    def _parameters(self) -> list[torch.Tensor]:
        return [each for group in self._optimizer.param_groups for each in group["params"]]

    def apply(self) -> torch.Tensor | None:
        """Take the optimizer's step; where losses are scaled, whether it overflowed and was left out, on the device."""
        if self._scaler is None:
            self._optimizer.step()
            return None
        self._scaler.step(self._optimizer)
        # Asking the scaler for its scale before and after would wait for the device.
        found = list(self._scaler._found_inf_per_device(self._optimizer).values())
        self._scaler.update()
        return found[0].detach().clone() if found else None

    def drop_update(self) -> None:
        """Forget the gradients that wait for others to be added, as one of them is not to be learned from."""
        if self.accumulate == 1:
            return
        if self._scaler is None:
            self.clear()
            return
        # A scaler takes no step without any gradient, and a trainer may let it.
        self._note_step()
        for parameter in self._parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()

    def clear(self) -> None:
        """Begin a new gradient."""
        self._num_added, self.is_adding = 0, False
        self._last_gradients = []
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.is_cpu:
                    # Freed here it could be the last thing in the heap: the C library would hand all of it back to the
                    # system, to be faulted in again by the next forward pass, at up to a third of a step. A script that
                    # clears gradients before its backward pass is spared that.
                    self._last_gradients.append(parameter.grad)
                if not self._clears_itself:
                    # What torch's own does besides is to label this for its profiler, which takes longer than the rest.
                    parameter.grad = None
        if self._clears_itself:
            self._plain.zero_grad()


def _norm_of(gradients: list[torch.Tensor]) -> torch.Tensor:
    found = [each.coalesce().values() if each.is_sparse else each for each in gradients]
    # Of no numbers there is no largest; a sum of squares would overflow in half precision.
    found = [each for each in found if each.numel()]
    return torch.stack(torch._foreach_norm(found, math.inf)).sum() if found else torch.zeros(())


def _values_of(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter to clip in place of one with a sparse gradient, whose values are its own gradient; else the same."""
    if parameter.grad is None or not parameter.grad.is_sparse:
        return parameter
    # Values of a row that is drawn twice are added up only here.
    parameter.grad = parameter.grad.coalesce()
    values = parameter.grad.values()
    stand_in = values.detach()
    stand_in.grad = values
    return stand_in


@functools.cache
def _passes_over(kind: Any) -> bool:
    """Whether optimizers of a kind pass over parameters without a gradient, as torch's own do; others may raise."""
    step = kind.step
    if str(getattr(step, "__module__", "")).startswith("torch.optim."):
        return True
    try:
        return re.search(r"grad is None:\s+continue", inspect.getsource(step)) is not None
    except (OSError, TypeError):
        return False


class StepHooks:
    """What happens around the steps of an optimizer, whoever takes them; the optimizer, or the one within it that takes
    its steps, holds it by its hooks.

    Before a step its gradient is looked at, one time in `DEAD_EVERY`. Once weights were not finite, it is looked at
    before each step, and one that is not finite is kept from the optimizer until the step is over, which then changes
    nothing. If recovery asks for a lower rate of the user's own, that is lowered for as long, so that whatever sets it,
    even a recursive schedule, never sees it.

    Args:
        r8: The run, which the optimizer may outlive.
        optimizer: A `torch.optim.Optimizer`, or what wraps one.
        stepper: Counts the steps; None where it takes none of this optimizer.
        looks: Whether gradients are looked at.
        may_withhold: Whether what is seen of them is the same in all processes.
        is_alone: Whether there is no other optimizer. Where a loop steps several, as of networks that train against
            each other, losses are no measure of progress.
        schedules: Looks at its schedules in a resumed run; None where its rate is not the user's own.
        steps: Of each optimizer of the run, the batches drawn and the updates before its last step.
    """

    def __init__(
        self, r8: R8Scheduler, optimizer: Any, stepper: Stepper | None, *, looks: bool, may_withhold: bool,
        is_alone: bool, schedules: ScheduleWatch | None, steps: dict[StepHooks, tuple[int, int]],
    ) -> None:  # fmt: skip
        self._steps = steps
        self._run, self._stepper, self._is_alone, self._schedules = weakref.ref(r8), stepper, is_alone, schedules
        self._looks, self._may_withhold = looks, may_withhold
        self._saved: list[Any] | None = None
        self._stepped_at: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._withheld: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._put_back: weakref.WeakSet[Any] = weakref.WeakSet()
        self.optimizers = [*inner_optimizers(optimizer).values()] or [plain_optimizer(optimizer)]
        for each in self.optimizers:
            if hasattr(each, "register_step_pre_hook"):
                each.register_step_pre_hook(self._before)

    def _before(self, optimizer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        r8, stepper = self._run(), self._stepper
        if self._saved is not None or self._withheld:
            # A step has raised.
            self._withheld = []
            self._after(optimizer)
        if r8 is None:
            return
        controller = r8.controller
        if not self._is_alone:
            drawn, updates = self._steps[self] = r8.pace.num_draws, controller.lineage.updates
            # Of one batch: the loss that was reported is not that of both.
            if any(each[0] == drawn and each[1] != updates for each in self._steps.values()):
                expect_rivals(r8, 1, len(self._steps), are_apart=True)
        if not controller.is_quiet:
            # What comes after the last loss was learned from is no step of the run.
            before, self._stepped_at[optimizer] = self._stepped_at.get(optimizer), controller.lineage.updates
            if r8.pace.is_closed or (r8.is_over and before == controller.lineage.updates):
                return
        if stepper is not None:
            updates = controller.lineage.updates
            if optimizer is stepper.counted:
                before, stepper.stepped_at = stepper.stepped_at, updates
                if not (stepper.knows_distance or before is None):
                    stepper.note_distance(r8, updates, before)
            if stepper.max_norm is not None and not controller.norms.is_used:
                # `Stepper.clip` was never called.
                r8.host.say_once("not clipped", NOT_CLIPPED.format(stepper.max_norm))
            is_turn = not max(0, updates - 1) // stepper.accumulate % DEAD_EVERY
            may_look = self._looks and controller.watches_gradients and not controller.experiment.is_open
            if is_turn and may_look and (self._is_alone or controller.norms.is_used) and not r8.is_over:
                controller.note_gradients(*stepper.gradient_sizes())
        # A closure computes the gradient later.
        if controller.lineage.updates < controller.state.watched_until and all(
            each is None for each in (*given[1:], *named.values())
        ):
            self.withhold(optimizer)
        if self._schedules is None:
            return
        if self._schedules.state.is_resumed:
            self._schedules.look(r8)
        factor = 1.0 if controller.is_quiet else r8.lr_factor
        if factor != 1:
            self._hear_end(optimizer)
            rates = [group["lr"] for group in optimizer.param_groups]
            self._saved = [rate.clone() if hasattr(rate, "clone") else rate for rate in rates]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                put_rate(group, rate * factor)

    def withhold(self, optimizer: Any) -> None:
        """Keep a gradient that is not finite from the optimizer until its step is over: without one it changes nothing.

        Only once weights were not finite, as each look reads a number back from the device.

        Raises:
            TrainingDiverged: too many steps in a row had such a gradient.
        """
        r8, kind = self._run(), optimizer.__class__
        is_watched = r8 is not None and r8.controller.state.watches_steps
        if r8 is None or not (is_watched and self._may_withhold and _passes_over(kind)):
            return
        held = [(each, each.grad) for group in optimizer.param_groups for each in group["params"]]
        held = [(each, gradient) for each, gradient in held if gradient is not None]
        gradients = [gradient for _, gradient in held]
        devices = {each.device for each in gradients}
        norms = [_norm_of([each for each in gradients if each.device == device]) for device in devices]
        # A loss scaler that has the optimizer leave the step out says so.
        if all(bool(each.isfinite()) for each in norms) or getattr(optimizer, "found_inf", None) is not None:
            r8.controller.state.refusals.withheld = 0
            return
        controller = r8.controller
        controller.state.left_out_step(r8.global_step, most=controller.recovery.max_refused, advice=NAN_GRADIENTS)
        self._withheld = held
        for each, _ in held:
            each.grad = None
        self._hear_end(optimizer)

    def _hear_end(self, optimizer: Any) -> None:
        """Have `_after` called, from the first step on that needs it."""
        if optimizer not in self._put_back:
            self._put_back.add(optimizer)
            handle = optimizer.register_step_post_hook(self._after)
            # Before hooks of the user's, which may look at gradients.
            optimizer._optimizer_step_post_hooks.move_to_end(handle.id, last=False)

    def _after(self, optimizer: Any, *_: Any) -> None:
        saved, self._saved = self._saved, None
        for group, rate in zip(optimizer.param_groups, saved or (), strict=False):
            put_rate(group, rate)
        held, self._withheld = self._withheld, []
        for each, gradient in held:
            each.grad = gradient


class SecondRun:
    """Computes steps once more that are not finite, and says which faults were transient.

    Losses on other devices are known too late, as the step was taken by then. Of several processes all compute a step
    again or none: under `DistributedDataParallel` all of them see the same averaged gradient, so none needs to ask.

    Args:
        model: The model, as it is trained.
        stepper: Computes its gradients.
        hand: Holds the batch, and buffers and random generators as they were when it came.
        run_batch: Returns the loss of a batch as the loader gives it; None if nothing can run again.
        r8: Is told what was found.
        gather: Returns the values of all processes that train the model; None if this is the only one.

    Attributes:
        is_possible: Whether a step can be computed once more: `of` is to be called only then.
    """

    def __init__(
        self, model: torch.nn.Module, stepper: Stepper, hand: Hand, run_batch: Callable[[Any], Any] | None,
        r8: R8Scheduler, *, gather: Callable[[Any], list[Any]] | None,
    ) -> None:  # fmt: skip
        self._model, self._stepper, self._hand, self._run_batch, self._r8 = model, stepper, hand, run_batch, r8
        self._gather = gather
        is_in_memory = all(each.is_cpu for each in model.parameters())
        can_agree = gather is None or isinstance(model, DistributedDataParallel)
        self.is_possible = run_batch is not None and can_agree and is_in_memory and stepper.can_begin_anew

    def of(
        self, loss: torch.Tensor, norm: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, bool]:
        """Look at the loss and the gradient of a step, and compute them once more if they are not finite.

        Args:
            loss: 0-dim, after its backward pass.
            norm: 0-dim, the norm of the gradient before it was clipped; None where nothing is clipped.

        Returns:
            The loss to report in place of that of the batch, None for that; the norm to report; and whether the
            optimizer may take the step, as a verdict over several processes comes only later.
        """
        hand, start, gather = self._hand, self._hand.start, self._gather
        hand.hold_starts(self._model)
        found = self._stepper.norm() if norm is None else norm
        # Only the gradient is the same in all processes; it is not, where they have not exchanged theirs.
        is_shared = gather is None or self._model.require_backward_grad_sync
        if bool(torch.isfinite(found if gather is not None else loss.detach() + found)) or not is_shared:
            return None, norm, True
        what = "gradient" if bool(torch.isfinite(loss.detach()).all()) else "loss"
        norm = found if what == "gradient" or gather is not None else norm
        if start is None or hand.batch is None:
            return None, norm, False
        set_random_state(state_of(start))
        hand.put_buffers_back()
        self._stepper.clear()
        assert self._run_batch is not None
        again = failure = None
        with torch.enable_grad():
            try:
                again = self._run_batch(hand.batch).mean()
            except Exception as error:
                # What a loss function raises because of a NaN is no sign of a transient fault.
                failure = error
            failures = [failure is not None] if gather is None else gather(failure is not None)
            if any(failures):
                if not all(failures):
                    # The gradients of the others would wait for those of this process.
                    raise RuntimeError("run_batch() raised on some processes only.") from failure
                return None, norm, False
            assert again is not None
            try:
                self._stepper.backward(again, is_last=True)
            except Exception:
                if gather is not None:
                    raise
                return None, norm, False
        second = self._stepper.clip()
        found = self._stepper.norm() if second is None else second
        is_finite = bool(torch.isfinite(found if gather is not None else again.detach() + found))
        self._r8.controller.computed_again(
            what, step=self._r8.global_step, is_finite=is_finite, device=f"the CPU of {platform.node()!r}"
        )
        return (again.detach(), second, True) if is_finite else (None, norm, False)
