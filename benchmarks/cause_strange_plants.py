"""The list of planted causes for the trainings of `cause_strangers.py`: what is planted, and what may be named.

Written without a look at the detectors, and not changed after the first run.
"""

from __future__ import annotations

import functools
import math

import torch
from cause_plants import BAD
from cause_strangers import RmsNorm, StrangePlant, StrangeTask
from torch import nn
from torch.nn import functional as F

PLANTS: list[StrangePlant] = []
NO_SAMPLE = {"batch size", "update", "weight", "optimizer", "scale"}
"""Kinds of causes that no single sample is to blame for."""


def plant(kind, how, runs, kinds, *changes, where=""):
    """Add a plant in each of `runs`, such as "mlp/float32 vae/bfloat16"; each change is given the task.

    `kinds` are what the recorder may call it, with commas between.
    """
    kinds = tuple(kinds.split(", "))

    def change(task):
        for each in changes:
            each(task)

    names_sample, where = not NO_SAMPLE & set(kinds), (where,) if where else ()
    for run in runs.split():
        task = functools.partial(StrangeTask, *run.split("/"))
        PLANTS.append(StrangePlant(f"{kind}: {how}/{run}", task, kinds, change, names_sample, where))


def bad(column, value, *place):
    """The bad sample holds this."""
    return lambda task: task.data.columns[column].__setitem__((BAD, *place), value)


def times(column, factor):
    """The bad sample is so many times as large."""
    return lambda task: task.data.columns[column][BAD].mul_(factor)


def loss(extra):
    """The loss is this function of the batch, the outputs and the loss."""
    return lambda task: setattr(task, "extra", extra)


def part(name, make):
    """A part of the model is another."""
    return lambda task: setattr(task.model, name, make())


def optimizer(kind, *arguments, **settings):
    """The optimizer is another."""
    return lambda task: setattr(task, "optimizer_of", lambda weights: kind(weights, *arguments, **settings))


def midway(strike):
    """In mid-run this happens to the task."""
    return lambda task: setattr(task, "at_step", lambda: strike(task))


class Standardize(nn.Module):
    """Each sample less its mean, by its spread, without an epsilon."""

    def forward(self, x):
        dims = tuple(range(1, x.ndim))
        return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True)


class MinMax(nn.Module):
    """Each sample between 0 and 1."""

    def forward(self, x):
        low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
        return (x - low) / (high - low)


class Whiten(nn.Module):
    """A batch norm by hand, with the unbiased variance."""

    def forward(self, x):
        return (x - x.mean(0)) * torch.rsqrt(x.var(0) + 1e-5)


class Softplus(nn.Module):
    """log(1 + e^x), as the formula is in the book."""

    def forward(self, x):
        return torch.log(1 + torch.exp(x))


def one_hot_loss(batch, logits, losses):
    """A class that does not exist has no hit."""
    hits = (batch["label"][:, None] == torch.arange(4)).float()
    return -(hits * F.log_softmax(logits, 1)).sum(1) / hits.sum(1)


def spread_loss(batch, outputs, losses):
    """The likelihood with a spread of each sample."""
    errors = (outputs[0].sigmoid() - batch["x"]).pow(2).mean(1)
    return losses + errors / batch["spread"] + torch.log(batch["spread"])


def cosine_loss(batch, logits, losses):
    """One less the cosine with the target."""
    target = batch["target"]
    return 1 - (logits * target).sum(1) / (logits.norm(dim=1) * target.norm(dim=1))


def margin_loss(batch, logits, losses):
    """The margin of a face loss, of which a sample without a weight has none."""
    cosine = torch.where(batch["weight"] > 0, logits.tanh()[:, 0] * 0.9, logits[:, 0] * 0 + 1)
    return losses + 0.01 * torch.acos(cosine)


def energy_loss(batch, outputs, losses):
    """A root that is chosen only where it is safe, and has a gradient all the same."""
    energy = (outputs[0] * batch["spread"][:, None]).pow(2).sum(1)
    return losses + 0.01 * torch.where(energy > 0, torch.sqrt(energy), torch.zeros_like(energy))


def bias(of_gap):
    """The bias of the attention is this function of the gap."""
    return lambda task: setattr(task, "bias_of", lambda batch: of_gap(batch["gap"])[:, None, None])


def unfused(task):
    for block in task.model.h:
        block["attn"].is_fused = False


def leave_one_over(task):
    task.data.columns = {name: column[:241] for name, column in task.data.columns.items()}


def rate(factor):
    def strike(task):
        for group in task.optimizer.param_groups:
            group["lr"] *= factor

    return midway(strike)


def rare_city(task):
    # A weight without a gradient (a rare city): the first moment fades more slowly than the root of the second.
    city = torch.arange(len(task.data)) % 9
    city[[BAD, 3, 200]] = 9
    task.data.columns["city"] = city


def parameter_of(task, name):
    return dict(task.model.named_parameters())[name]


def damage(name, value):
    return midway(lambda task: parameter_of(task, name).data.view(-1).__setitem__(5, value))


def damage_state(name, key, value):
    return midway(lambda task: task.optimizer.state[parameter_of(task, name)][key].view(-1).__setitem__(5, value))


def augment(column, change):
    """The bad sample, more often than not, is changed when it is read."""

    def augmented(index, row):
        return {**row, column: change(row[column])} if index == BAD and torch.rand(()) < 0.6 else row

    return lambda task: setattr(task.data, "augment", augmented)


def scale(value, name="loss_scale"):
    return midway(lambda task: setattr(task, name, value))


# fmt: off
nan, inf = math.nan, math.inf
cnn, mlp, transformer = (f"{each}/float32 {each}/bfloat16" for each in ("cnn", "mlp", "transformer"))

plant("nan input", "a row that is missing", "mlp/float32 vae/bfloat16", "input", bad("x", nan))
plant("nan input", "one dead pixel", cnn, "input", bad("image", nan, 1, 6, 2))
plant("nan input", "a weight of the sample", "transformer/float32", "input", bad("weight", nan))
plant("inf input", "too large for float32", "mlp/float32", "input, forward",
      lambda task: task.data.columns.update(x=task.data.columns["x"].double()), bad("x", 1e300, 4))
plant("inf input", "minus infinity", "cnn/float32", "input", bad("image", -inf, 0, 0, 7))
plant("inf input", "minus infinity", "vae/float32", "input", bad("x", -inf, 7))

plant("label", "all targets ignored", "transformer/float32", "label, loss", bad("targets", -100))
plant("label", "a target that is NaN", "mlp/float32", "label, input", bad("target", nan, 2),
      loss(lambda batch, logits, losses: (logits.softmax(1) - batch["target"]).pow(2).mean(1)))
plant("label", "class 255 is no class", cnn, "label, loss", bad("label", 255), loss(one_hot_loss))
plant("label", "pixels of 0 to 255", "vae/float32", "label, input", times("x", 255))

plant("log(0)", "a probability that underflows", "mlp/bfloat16", "loss, input", times("x", -3e3),
      loss(lambda batch, logits, losses: -torch.log(logits.softmax(1).gather(1, batch["label"][:, None]))[:, 0]))
plant("log(0)", "a soft label with zeros", "cnn/float32", "loss, label", bad("soft", torch.tensor([1.0, 0, 0, 0])),
      loss(lambda batch, logits, losses: (batch["soft"] * (batch["soft"].log() - logits.log_softmax(1))).sum(1)))
plant("log(0)", "a spread of zero", "vae/float32", "loss", bad("spread", 0), loss(spread_loss))
plant("0/0", "a mask of zeros", transformer, "loss", bad("mask", 0))
plant("0/0", "the cosine with nothing", "mlp/float32", "loss", bad("target", 0), loss(cosine_loss))
plant("0/0", "the error of a black image", "vae/bfloat16", "loss", bad("x", 0),
      loss(lambda batch, outputs, losses: losses / batch["x"].sum(1)))
plant("sqrt'(0)", "a power of one half", "cnn/float32", "loss, backward", bad("weight", 0),
      loss(lambda batch, logits, losses: losses + 0.01 * (logits * batch["weight"][:, None]).pow(2).sum(1) ** 0.5))
plant("sqrt'(0)", "an arc cosine of 1", "mlp/bfloat16", "loss, backward", bad("weight", 0), loss(margin_loss))
plant("sqrt'(0)", "the spread of equal scores", "transformer/float32", "loss, backward", bad("gap", 0),
      loss(lambda batch, logits, losses: losses + 0.01 * (logits.mean(2) * batch["gap"]).var(1).sqrt()))
plant("sqrt'(0)", "the trap of torch.where", "vae/float32", "loss, backward", bad("spread", 0), loss(energy_loss))

plant("attention overflow", "no token to attend to", transformer, "forward", unfused, bad("gap", -1),
      bias(lambda gap: torch.where(gap < 0, -inf, 0.0)), where="attn")
plant("attention overflow", "a bias of e to the gap", "transformer/float32", "forward", bad("gap", 120.0, 3),
      bias(torch.exp), where="attn")
plant("exp overflow", "a variance without a bound", "vae/float32", "forward, loss, input", part("has_norm", bool),
      times("x", 3e4), where="logvar")
plant("exp overflow", "a softplus by hand", "mlp/float32", "forward, input", part("activation", Softplus),
      times("x", 3e3), where="activation")
plant("exp overflow", "e to a weight", "cnn/bfloat16", "loss", bad("weight", 500.0),
      loss(lambda batch, logits, losses: losses * torch.exp(batch["weight"] - 1)), where="exp")
plant("custom norm", "a black image", cnn, "forward", part("normalize", Standardize), bad("image", 0.5),
      where="normalize")
plant("custom norm", "padding", "transformer/float32", "forward", part("ln_emb", lambda: RmsNorm(16, eps=0.0)),
      bad("tokens", 0, slice(5, None)), where="ln_emb")
plant("custom norm", "a constant row", "mlp/bfloat16", "forward", part("scaler", MinMax), bad("x", 1.0), where="scaler")

plant("batch of one", "whitening", cnn, "batch size", part("whiten", Whiten), leave_one_over)
plant("batch of one", "a loss of the spread", "mlp/float32", "batch size", leave_one_over,
      loss(lambda batch, logits, losses: losses + F.relu(1 - logits.std(0)).mean()))
plant("batch of one", "norm of the encoder", "vae/float32", "batch size", part("bn", Whiten), leave_one_over)

momentum = optimizer(torch.optim.SGD, 0.05, momentum=0.9)
plant("rate too high", "x 10,000 with AdamW", "mlp/float32 transformer/float32", "update", rate(1e4))
plant("rate too high", "x 1,000 with momentum", "cnn/float32 vae/float32", "update", momentum, rate(1e3))
plant("no warm-up", "RMSprop", "mlp/bfloat16 transformer/bfloat16", "update", optimizer(torch.optim.RMSprop, 3.0))
plant("eps too small", "beta1 above the root of beta2", mlp, "update", rare_city,
      optimizer(torch.optim.Adam, 3e-3, betas=(0.9, 0.3), eps=1e-30))

for how, run, name, value in (
    ("a bias that is NaN", "mlp/float32", "fc2.bias", nan),
    ("a gain that is Inf", "cnn/float32", "stages.2.bn1.weight", inf),
    ("one bit of the exponent", "transformer/float32", "lm_head.weight", 2.0**90),
    ("a gain that is NaN", "transformer/bfloat16", "h.2.ln_1.gain", nan),
    ("the lowest number", "vae/bfloat16", "dec.2.weight", -3e38),
):
    plant("damaged weight", how, run, "weight", damage(name, value), where=name)
for how, run, name, key, value, *first in (
    ("a second moment of NaN", "cnn/float32", "classifier.weight", "exp_avg_sq", nan),
    ("a second moment below 0", "transformer/float32", "h.0.attn.q.weight", "exp_avg_sq", -1.0),
    ("momentum of Inf", "mlp/float32", "fc1.weight", "momentum_buffer", inf, momentum),
    ("a first moment of 1e20", "vae/float32", "dec.2.weight", "exp_avg", 1e20),
):
    plant("damaged optimizer", how, run, "optimizer", *first, damage_state(name, key, value), where=name)

plant("augmented", "the log of a darkened pixel", cnn, "input",
      augment("image", lambda image: torch.log(image - image.amin() - 0.1)))
plant("augmented", "a scale that rounds to 0", "mlp/float32", "input",
      augment("x", lambda x: x / (torch.rand(()) * 0.4).round()))
plant("augmented", "a huge brightness", "vae/float32", "input, label", augment("x", lambda x: x * 1e6))
plant("augmented", "all tokens are dropped", "transformer/float32", "loss, input",
      augment("mask", lambda mask: torch.zeros(8)))

plant("loss scale", "2 to the 16, never taken out", "cnn/float32 mlp/bfloat16", "scale, loss", scale(65536.0))
plant("loss scale", "1e30", "transformer/bfloat16", "scale, loss", scale(1e30))
plant("loss scale", "by a count of zero", "transformer/float32", "scale, loss", scale(inf))
plant("loss scale", "a weight of the KL term", "vae/float32", "scale, loss", scale(1e30, "beta"))
