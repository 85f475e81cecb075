"""The list of planted causes for the trainings of `cause_strangers.py`: what is planted, and what may be named.

Written without a look at the detectors, and not changed after the first run.
"""

from __future__ import annotations

import torch
from cause_plants import BAD
from cause_strangers import RmsNorm, StrangePlant
from torch import nn
from torch.nn import functional as F

PLANTS: list[StrangePlant] = []


def planted(kind, how, *runs, kinds, names_sample=False, where=()):
    """Add a plant in each of `runs`, texts such as "mlp/float32"."""

    def add(plant):
        for run in runs:
            model, dtype = run.split("/")
            PLANTS.append(StrangePlant(kind, how, model, dtype, tuple(kinds), plant, names_sample, tuple(where)))
        return plant

    return add


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


# Inputs.


@planted("nan input", "a row that is missing", "mlp/float32", "vae/bfloat16", kinds=["input"], names_sample=True)
def _(task):
    task.data.columns["x"][BAD] = float("nan")


@planted("nan input", "one dead pixel", "cnn/float32", "cnn/bfloat16", kinds=["input"], names_sample=True)
def _(task):
    task.data.columns["image"][BAD, 1, 6, 2] = float("nan")


@planted("nan input", "a weight of the sample", "transformer/float32", kinds=["input"], names_sample=True)
def _(task):
    task.data.columns["weight"][BAD] = float("nan")


@planted("inf input", "too large for float32", "mlp/float32", kinds=["input", "forward"], names_sample=True)
def _(task):
    task.data.columns["x"] = task.data.columns["x"].double()
    task.data.columns["x"][BAD, 4] = 1e300


@planted("inf input", "minus infinity", "cnn/float32", "vae/float32", kinds=["input"], names_sample=True)
def _(task):
    task.data.columns["image" if task.model_name == "cnn" else "x"][BAD].view(-1)[7] = float("-inf")


# Labels.


@planted("label", "all targets ignored", "transformer/float32", kinds=["label", "loss"], names_sample=True)
def _(task):
    task.data.columns["targets"][BAD] = -100


@planted("label", "a target that is NaN", "mlp/float32", kinds=["label", "input"], names_sample=True)
def _(task):
    task.data.columns["target"][BAD, 2] = float("nan")
    task.extra = lambda batch, logits, losses: (logits.softmax(1) - batch["target"]).pow(2).mean(1)


@planted("label", "class 255 is no class", "cnn/float32", "cnn/bfloat16", kinds=["label", "loss"], names_sample=True)
def _(task):
    def one_hot_loss(batch, logits, losses):
        hits = (batch["label"][:, None] == torch.arange(4)).float()
        return -(hits * F.log_softmax(logits, 1)).sum(1) / hits.sum(1)

    task.data.columns["label"][BAD] = 255
    task.extra = one_hot_loss


@planted("label", "pixels of 0 to 255", "vae/float32", kinds=["label", "input"], names_sample=True)
def _(task):
    task.data.columns["x"][BAD] *= 255


# The loss.


@planted("log(0)", "a probability that underflows", "mlp/bfloat16", kinds=["loss", "input"], names_sample=True)
def _(task):
    def loss(batch, logits, losses):
        return -torch.log(logits.softmax(1).gather(1, batch["label"][:, None]))[:, 0]

    task.data.columns["x"][BAD] *= -3e3
    task.extra = loss


@planted("log(0)", "a soft label with zeros", "cnn/float32", kinds=["loss", "label"], names_sample=True)
def _(task):
    task.data.columns["soft"][BAD] = torch.tensor([1.0, 0, 0, 0])
    task.extra = lambda batch, logits, losses: (
        batch["soft"] * (batch["soft"].log() - logits.log_softmax(1))
    ).sum(1)  # fmt: skip


@planted("log(0)", "a spread of zero", "vae/float32", kinds=["loss"], names_sample=True)
def _(task):
    def loss(batch, outputs, losses):
        errors = (outputs[0].sigmoid() - batch["x"]).pow(2).mean(1)
        return losses + errors / batch["spread"] + torch.log(batch["spread"])

    task.data.columns["spread"][BAD] = 0
    task.extra = loss


@planted("0/0", "a mask of zeros", "transformer/float32", "transformer/bfloat16", kinds=["loss"], names_sample=True)
def _(task):
    task.data.columns["mask"][BAD] = 0


@planted("0/0", "the cosine with nothing", "mlp/float32", kinds=["loss"], names_sample=True)
def _(task):
    def loss(batch, logits, losses):
        target = batch["target"]
        return 1 - (logits * target).sum(1) / (logits.norm(dim=1) * target.norm(dim=1))

    task.data.columns["target"][BAD] = 0
    task.extra = loss


@planted("0/0", "the error of a black image", "vae/bfloat16", kinds=["loss"], names_sample=True)
def _(task):
    task.data.columns["x"][BAD] = 0
    task.extra = lambda batch, outputs, losses: losses / batch["x"].sum(1)


@planted("sqrt'(0)", "a power of one half", "cnn/float32", kinds=["loss", "backward"], names_sample=True)
def _(task):
    task.data.columns["weight"][BAD] = 0
    task.extra = lambda batch, logits, losses: losses + 0.01 * (logits * batch["weight"][:, None]).pow(2).sum(1) ** 0.5


@planted("sqrt'(0)", "an arc cosine of 1", "mlp/bfloat16", kinds=["loss", "backward"], names_sample=True)
def _(task):
    def loss(batch, logits, losses):
        # The margin of a face loss, of which the sample has none.
        cosine = torch.where(batch["weight"] > 0, logits.tanh()[:, 0] * 0.9, logits[:, 0] * 0 + 1)
        return losses + 0.01 * torch.acos(cosine)

    task.data.columns["weight"][BAD] = 0
    task.extra = loss


@planted("sqrt'(0)", "the spread of equal scores", "transformer/float32", kinds=["loss", "backward"], names_sample=True)
def _(task):
    task.data.columns["gap"][BAD] = 0
    task.extra = lambda batch, logits, losses: (
        losses + 0.01 * (logits.mean(2) * batch["gap"]).var(1).sqrt()
    )  # fmt: skip


@planted("sqrt'(0)", "the trap of torch.where", "vae/float32", kinds=["loss", "backward"], names_sample=True)
def _(task):
    def loss(batch, outputs, losses):
        energy = (outputs[0] * batch["spread"][:, None]).pow(2).sum(1)
        return losses + 0.01 * torch.where(energy > 0, torch.sqrt(energy), torch.zeros_like(energy))

    task.data.columns["spread"][BAD] = 0
    task.extra = loss


# Overflow in the model.


@planted(
    "attention overflow", "no token to attend to", "transformer/float32", "transformer/bfloat16",
    kinds=["forward"], names_sample=True, where=["attn"],
)  # fmt: skip
def _(task):
    def bias(batch):
        return torch.where(batch["gap"] < 0, float("-inf"), 0.0)[:, None, None]

    for block in task.model.h:
        block["attn"].is_fused = False
    task.data.columns["gap"][BAD] = -1
    task.bias_of = bias


@planted(
    "attention overflow", "a bias of e to the gap", "transformer/float32",
    kinds=["forward"], names_sample=True, where=["attn"],
)  # fmt: skip
def _(task):
    task.data.columns["gap"][BAD, 3] = 120.0
    task.bias_of = lambda batch: torch.exp(batch["gap"])[:, None, None]


@planted(
    "exp overflow", "a variance without a bound", "vae/float32",
    kinds=["forward", "loss", "input"], names_sample=True, where=["logvar"],
)  # fmt: skip
def _(task):
    task.model.has_norm = False
    task.data.columns["x"][BAD] *= 3e4


@planted(
    "exp overflow", "a softplus by hand", "mlp/float32",
    kinds=["forward", "input"], names_sample=True, where=["activation"],
)  # fmt: skip
def _(task):
    task.model.activation = Softplus()
    task.data.columns["x"][BAD] *= 3e3


@planted("exp overflow", "e to a weight", "cnn/bfloat16", kinds=["loss"], names_sample=True, where=["exp"])
def _(task):
    task.data.columns["weight"][BAD] = 500.0
    task.extra = lambda batch, logits, losses: losses * torch.exp(batch["weight"] - 1)


@planted(
    "custom norm", "a black image", "cnn/float32", "cnn/bfloat16",
    kinds=["forward"], names_sample=True, where=["normalize"],
)  # fmt: skip
def _(task):
    task.model.normalize = Standardize()
    task.data.columns["image"][BAD] = 0.5


@planted("custom norm", "padding", "transformer/float32", kinds=["forward"], names_sample=True, where=["ln_emb"])
def _(task):
    task.model.ln_emb = RmsNorm(16, eps=0.0)
    task.data.columns["tokens"][BAD, 5:] = 0


@planted("custom norm", "a constant row", "mlp/bfloat16", kinds=["forward"], names_sample=True, where=["scaler"])
def _(task):
    task.model.scaler = MinMax()
    task.data.columns["x"][BAD] = 1.0


# A batch of one.


def _leave_one_over(task):
    task.data.columns = {name: column[:241] for name, column in task.data.columns.items()}


@planted("batch of one", "whitening", "cnn/float32", "cnn/bfloat16", kinds=["batch size"])
def _(task):
    task.model.whiten = Whiten()
    _leave_one_over(task)


@planted("batch of one", "a loss of the spread", "mlp/float32", kinds=["batch size"])
def _(task):
    task.extra = lambda batch, logits, losses: losses + F.relu(1 - logits.std(0)).mean()
    _leave_one_over(task)


@planted("batch of one", "norm of the encoder", "vae/float32", kinds=["batch size"])
def _(task):
    task.model.bn = Whiten()
    _leave_one_over(task)


# The update was too large.


def _multiply_rate(task, factor):
    def strike():
        for group in task.optimizer.param_groups:
            group["lr"] *= factor

    task.at_step = strike


@planted("rate too high", "x 10,000 with AdamW", "mlp/float32", "transformer/float32", kinds=["update"])
def _(task):
    _multiply_rate(task, 1e4)


@planted("rate too high", "x 1,000 with momentum", "cnn/float32", "vae/float32", kinds=["update"])
def _(task):
    task.optimizer_of = lambda weights: torch.optim.SGD(weights, 0.05, momentum=0.9)
    _multiply_rate(task, 1e3)


@planted("no warm-up", "RMSprop", "mlp/bfloat16", "transformer/bfloat16", kinds=["update"])
def _(task):
    task.optimizer_of = lambda weights: torch.optim.RMSprop(weights, 3.0)


@planted("eps too small", "beta1 above the root of beta2", "mlp/float32", "mlp/bfloat16", kinds=["update"])
def _(task):
    # A weight without a gradient (a rare city): the first moment fades more slowly than the root of the second.
    city = torch.arange(len(task.data)) % 9
    city[[BAD, 3, 200]] = 9
    task.data.columns["city"] = city
    task.optimizer_of = lambda weights: torch.optim.Adam(weights, 3e-3, betas=(0.9, 0.3), eps=1e-30)


# Damage.


def _damage(task, name, value, index=5):
    def strike():
        with torch.no_grad():
            dict(task.model.named_parameters())[name].view(-1)[index] = value

    task.at_step = strike


@planted("damaged weight", "a bias that is NaN", "mlp/float32", kinds=["weight"], where=["fc2.bias"])
def _(task):
    _damage(task, "fc2.bias", float("nan"))


@planted("damaged weight", "a gain that is Inf", "cnn/float32", kinds=["weight"], where=["stages.2.bn1.weight"])
def _(task):
    _damage(task, "stages.2.bn1.weight", float("inf"))


@planted("damaged weight", "one bit of the exponent", "transformer/float32", kinds=["weight"], where=["lm_head.weight"])
def _(task):
    _damage(task, "lm_head.weight", 2.0**90)


@planted("damaged weight", "a gain that is NaN", "transformer/bfloat16", kinds=["weight"], where=["h.2.ln_1.gain"])
def _(task):
    _damage(task, "h.2.ln_1.gain", float("nan"))


@planted("damaged weight", "the lowest number", "vae/bfloat16", kinds=["weight"], where=["dec.2.weight"])
def _(task):
    _damage(task, "dec.2.weight", -3e38)


def _damage_state(task, name, key, value):
    def strike():
        parameter = dict(task.model.named_parameters())[name]
        task.optimizer.state[parameter][key].view(-1)[5] = value

    task.at_step = strike


@planted("damaged optimizer", "a second moment of NaN", "cnn/float32", kinds=["optimizer"], where=["classifier.weight"])
def _(task):
    _damage_state(task, "classifier.weight", "exp_avg_sq", float("nan"))


@planted(
    "damaged optimizer",
    "a second moment below 0",
    "transformer/float32",
    kinds=["optimizer"],
    where=["h.0.attn.q.weight"],
)
def _(task):
    _damage_state(task, "h.0.attn.q.weight", "exp_avg_sq", -1.0)


@planted("damaged optimizer", "momentum of Inf", "mlp/float32", kinds=["optimizer"], where=["fc1.weight"])
def _(task):
    task.optimizer_of = lambda weights: torch.optim.SGD(weights, 0.05, momentum=0.9)
    _damage_state(task, "fc1.weight", "momentum_buffer", float("inf"))


@planted("damaged optimizer", "a first moment of 1e20", "vae/float32", kinds=["optimizer"], where=["dec.2.weight"])
def _(task):
    _damage_state(task, "dec.2.weight", "exp_avg", 1e20)


# Only when it is augmented.


def _augment(task, change):
    def augment(index, row):
        return change(dict(row)) if index == BAD and torch.rand(()) < 0.6 else row

    task.data.augment = augment


@planted("augmented", "the log of a darkened pixel", "cnn/float32", "cnn/bfloat16", kinds=["input"], names_sample=True)
def _(task):
    def change(row):
        row["image"] = torch.log(row["image"] - row["image"].amin() - 0.1)
        return row

    _augment(task, change)


@planted("augmented", "a scale that rounds to 0", "mlp/float32", kinds=["input"], names_sample=True)
def _(task):
    def change(row):
        row["x"] = row["x"] / (torch.rand(()) * 0.4).round()
        return row

    _augment(task, change)


@planted("augmented", "a huge brightness", "vae/float32", kinds=["input", "label"], names_sample=True)
def _(task):
    def change(row):
        row["x"] = row["x"] * 1e6
        return row

    _augment(task, change)


@planted("augmented", "all tokens are dropped", "transformer/float32", kinds=["loss", "input"], names_sample=True)
def _(task):
    def change(row):
        row["mask"] = torch.zeros(8)
        return row

    _augment(task, change)


# The loss scale.


def _scale_loss(task, scale):
    def strike():
        task.loss_scale = scale

    task.at_step = strike


@planted("loss scale", "2 to the 16, never taken out", "cnn/float32", "mlp/bfloat16", kinds=["scale", "loss"])
def _(task):
    _scale_loss(task, 65536.0)


@planted("loss scale", "1e30", "transformer/bfloat16", kinds=["scale", "loss"])
def _(task):
    _scale_loss(task, 1e30)


@planted("loss scale", "by a count of zero", "transformer/float32", kinds=["scale", "loss"])
def _(task):
    _scale_loss(task, float("inf"))


@planted("loss scale", "a weight of the KL term", "vae/float32", kinds=["scale", "loss"])
def _(task):
    def strike():
        task.beta = 1e30

    task.at_step = strike
