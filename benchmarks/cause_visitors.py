"""A third list of planted causes, for `causes.py`: five small trainings that none of the detectors was written beside.

An MLP of readings, a CNN whose backbone's BatchNorm is frozen, a character model with tied weights, a VAE with Gumbel
noise and a learned spread, and an LSTM over padded sequences. Each cause is one that the other lists do not have.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from cause_plants import BAD, NUM_SAMPLES
from cause_strangers import Rows, StrangePlant
from torch import nn
from torch.nn import functional as F

dice = torch.Generator()


def noise(*shape):
    return torch.randn(NUM_SAMPLES, *shape, generator=dice)


class Readings(nn.Module):
    """Sensor readings, a ratio of two of them, and a learned temperature."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(), nn.Linear(32, 32), nn.LeakyReLU())
        self.out, self.temperature = nn.Linear(32, 1), nn.Parameter(torch.tensor(1.0))
        self.uses_ratio = self.uses_log = False

    def forward(self, x):
        if self.uses_ratio:
            x = torch.cat([x[:, :7], (x[:, 6:7] / x[:, 7:8])], 1)
        if self.uses_log:
            x = torch.log1p(x)
        return self.out(self.body(x)) / self.temperature


class FineTuned(nn.Module):
    """A backbone that keeps its statistics, and a head that is trained."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 3)
        self.bn1.eval()

    def train(self, mode=True):
        super().train(mode)
        self.bn1.eval()
        return self

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


class Heads(nn.Module):
    """Attention with a slope of each head for the distance, and a temperature that the loop sets."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.slope, self.temperature, self.has_root = nn.Parameter(torch.tensor([0.5, 0.25])), 1.0, False

    def forward(self, x):
        q, k, v = (each.unflatten(-1, (2, -1)).transpose(1, 2) for each in self.qkv(x).chunk(3, -1))
        slope = self.slope.sqrt() if self.has_root else self.slope
        apart = (torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()
        scores = q @ k.transpose(2, 3) / self.temperature - slope[:, None, None] * apart
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Characters(nn.Module):
    """A character model with tied weights."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(24, 16), nn.Embedding(10, 16)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(16), Heads(16), nn.LayerNorm(16), nn.Linear(16, 16)]) for _ in range(2)
        )
        self.norm = nn.LayerNorm(16)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for norm1, attention, norm2, mlp in self.layers:
            x = x + attention(norm1(x))
            x = x + F.gelu(mlp(norm2(x)))
        return self.norm(x) @ self.tokens.weight.T


class Gumbel(nn.Module):
    """Noise from uniform numbers, of which one may be 0."""

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, x):
        u = torch.floor(torch.rand_like(x) * self.levels) / self.levels if self.levels else torch.rand_like(x)
        return x - 0.1 * torch.log(-torch.log(u if self.levels else u.clamp(1e-6, 1 - 1e-6)))


class Spread(nn.Module):
    """An autoencoder with a learned spread of its outputs."""

    def __init__(self):
        super().__init__()
        self.enc, self.gumbel = nn.Sequential(nn.Linear(12, 24), nn.ELU(), nn.Linear(24, 4)), Gumbel(0)
        self.dec = nn.Sequential(nn.Linear(4, 24), nn.ELU(), nn.Linear(24, 12))
        self.log_sigma, self.is_half = nn.Parameter(torch.tensor(0.0)), False

    def forward(self, x):
        x = x.half().float() if self.is_half else x
        return self.dec(self.gumbel(self.enc(x)))


class Recurrent(nn.Module):
    """An LSTM over padded sequences, with times between the readings, that may carry its state from batch to batch."""

    def __init__(self):
        super().__init__()
        self.embed, self.lstm = nn.Linear(3, 16), nn.LSTM(16, 16, batch_first=True)
        self.decay, self.head, self.carried = nn.Linear(1, 16), nn.Linear(16, 5), None
        self.carries = False

    def forward(self, series, gaps, lengths, *, each=False):
        x = self.embed(series) * torch.exp(-self.decay(gaps))
        given = None
        if self.carries and self.carried is not None and self.carried[0].shape[1] == len(x):
            given = self.carried
        out, state = self.lstm(x, given)
        self.carried = tuple(part.detach() for part in state)
        if each:
            return self.head(out)
        mask = torch.arange(out.shape[1]) < lengths[:, None]
        return self.head((out * mask[..., None]).sum(1) / lengths[:, None])


MODELS = {"mlp": Readings, "cnn": FineTuned, "lm": Characters, "vae": Spread, "lstm": Recurrent}


def columns_of(model: str) -> dict[str, torch.Tensor]:
    """The data of a model: one tensor per column, a row for each sample."""
    dice.manual_seed(23)
    label = torch.randint(3, (NUM_SAMPLES,), generator=dice)
    if model == "mlp":
        x = noise(8).abs() + 0.1
        return {"x": x, "y": x @ torch.linspace(-1, 1, 8)[:, None]}
    if model == "cnn":
        positive = torch.rand(NUM_SAMPLES, generator=dice) < 0.2
        return {"image": torch.randn(3, 1, 6, 6, generator=dice)[label] + noise(1, 6, 6), "label": label,
                "positive": positive}  # fmt: skip
    if model == "lm":
        starts = torch.randint(24, (NUM_SAMPLES, 1), generator=dice)
        return {"tokens": (starts + torch.arange(11) * (1 + label[:, None])) % 24}
    if model == "vae":
        return {"x": torch.randn(3, 12, generator=dice)[label] + 0.5 * noise(12)}
    lengths = torch.randint(3, 9, (NUM_SAMPLES,), generator=dice)
    return {"series": noise(8, 3) + label[:, None, None], "gaps": noise(8, 1).abs(), "lengths": lengths,
            "label": label, "spoken": torch.randint(1, 5, (NUM_SAMPLES, 3), generator=dice)}  # fmt: skip


class VisitorTask:
    """A training that something is planted in."""

    def __init__(self, model_name: str):
        torch.manual_seed(3)
        self.model_name, self.data, self.model = model_name, Rows(columns_of(model_name)), MODELS[model_name]()
        self.optimizer_of: Callable[[Any], torch.optim.Optimizer] = lambda weights: torch.optim.AdamW(weights, 3e-3)
        self.at_step: Callable[[], None] = lambda: None
        self.way, self.smoothing, self.record = "", 0.0, "all"

    def build(self):
        if self.model_name == "mlp":
            own = [each for each in self.model.parameters() if each is not self.model.temperature]
            self.optimizer = torch.optim.AdamW([{"params": own}, {"params": [self.model.temperature]}], 3e-3)
        else:
            self.optimizer = self.optimizer_of(self.model.parameters())

    def losses(self, batch):
        return getattr(self, f"_{self.model_name}")(batch)

    def run_batch(self, batch):
        return self.losses(batch).mean()

    def _mlp(self, batch):
        return (self.model(batch["x"]) - batch["y"]).square().mean(1)

    def _cnn(self, batch):
        losses = F.cross_entropy(self.model(batch["image"]), batch["label"], reduction="none")
        return losses[batch["positive"]].mean() if self.way == "positives" else losses

    def _lm(self, batch):
        logits, targets = self.model(batch["tokens"][:, :-1]), batch["tokens"][:, 1:]
        if self.way == "vocabulary":
            # Symbols that do not exist get no probability.
            logits = logits.masked_fill(torch.arange(24) >= 22, float("-inf"))
        return F.cross_entropy(
            logits.transpose(1, 2), targets, reduction="none", label_smoothing=self.smoothing
        ).mean(1)  # fmt: skip

    def _vae(self, batch):
        errors = (self.model(batch["x"]) - batch["x"]).square().mean(1)
        sigma = self.model.log_sigma.exp()
        return errors / (2 * sigma**2) + self.model.log_sigma

    def _lstm(self, batch):
        if self.way != "ctc":
            logits = self.model(batch["series"], batch["gaps"], batch["lengths"])
            return F.cross_entropy(logits, batch["label"], reduction="none")
        scores = self.model(batch["series"], batch["gaps"], batch["lengths"], each=True).log_softmax(-1)
        counts = torch.full((len(scores),), 3)
        lengths = batch["lengths"]
        return F.ctc_loss(scores.transpose(0, 1), batch["spoken"], lengths, counts, reduction="none")


def bad(column, value, *place):
    """The bad sample holds this."""
    return lambda task: task.data.columns[column].__setitem__((BAD, *place), value)


def sets(name, value, *, at_step=False):
    """An attribute of the task, such as `model.gumbel.levels`, has this value, at once or in mid-run."""
    *owners, last = name.split(".")

    def change(task):
        setattr(functools.reduce(getattr, owners, task), last, value)

    return midway(change) if at_step else change


def midway(strike):
    """In mid-run this happens to the task."""
    return lambda task: setattr(task, "at_step", lambda: strike(task))


PLANTS: list[StrangePlant] = []


def plant(how, model, kinds, *changes, sample=False, where="", nobody=False):
    """Add a plant; each change is given the task. `kinds`, and `where`, are texts with commas between."""

    def change(task):
        for each in changes:
            each(task)

    places = tuple(where.split(", ")) if where else ()
    task = functools.partial(VisitorTask, model)
    PLANTS.append(StrangePlant(f"{how}/{model}", task, tuple(kinds.split(", ")), change, sample, places, nobody))


# fmt: off
plant("a target in other units", "mlp", "label, loss, input", bad("y", 1e9), sample=True)
plant("a ratio with nothing", "mlp", "forward, input", bad("x", 0, 7), sets("model.uses_ratio", True), sample=True)
plant("the logarithm of a negative reading", "mlp", "forward", bad("x", -1.5, 2), sets("model.uses_log", True),
      sample=True)
plant("a hook that divides a gradient by its length of zero", "mlp", "backward",
      midway(lambda task: task.model.body[0].weight.register_hook(lambda g: g / (0 * g).norm())),
      where="body.0, div", nobody=True)
plant("a decay of the weights of 1e6", "mlp", "update",
      midway(lambda task: task.optimizer.param_groups[0].update(weight_decay=1e6)))
plant("a temperature with a rate of its own", "mlp", "update",
      midway(lambda task: task.optimizer.param_groups[1].update(lr=0.999)))
plant("a temperature of almost nothing", "mlp", "weight", midway(lambda task: task.model.temperature.fill_(1e-12)),
      where="temperature")

plant("a running variance below zero", "cnn", "weight",
      midway(lambda task: task.model.bn1.running_var[2].fill_(-1.0)), where="bn1")
plant("a running mean far off", "cnn", "weight", midway(lambda task: task.model.bn1.running_mean[5].fill_(-1e30)),
      where="bn1")
plant("a whole filter of 1e22", "cnn", "weight", midway(lambda task: task.model.conv1.weight[3].mul_(1e22)),
      where="conv1")
plant("no positive in the batch", "cnn", "loss", sets("way", "positives"), where="mean", nobody=True)
plant("the last batch before an epoch's end has other pixels", "cnn", "input, forward, backward",
      bad("image", torch.finfo(torch.float32).max), sample=True)

plant("a row of the embedding of 1e25", "lm", "weight", midway(lambda task: task.model.tokens.weight[7].mul_(1e25)),
      where="tokens")
plant("a temperature of zero", "lm", "forward",
      midway(lambda task: setattr(task.model.layers[1][1], "temperature", 0.0)), where="layers.1.1, layers.0.1")
plant("the root of a slope below zero", "lm", "weight, forward",
      lambda task: setattr(task.model.layers[1][1], "has_root", True),
      midway(lambda task: task.model.layers[1][1].slope[1].fill_(-0.3)), where="layers.1.1")
plant("smoothed labels over symbols that do not exist", "lm", "loss", sets("way", "vocabulary"),
      lambda task: task.data.columns["tokens"].remainder_(22), sets("smoothing", 0.1, at_step=True))

plant("a draw of exactly 0, its generators kept", "vae", "forward", sets("model.gumbel.levels", 2**12), where="gumbel")
plant("a draw of exactly 0, its generators gone", "vae", "forward", sets("model.gumbel.levels", 2**12),
      sets("record", "names"), where="gumbel")
plant("a spread that has collapsed", "vae", "weight", midway(lambda task: task.model.log_sigma.fill_(-60.0)),
      where="log_sigma")
plant("a value beyond half precision", "vae", "input, forward", bad("x", 7e4, 3), sets("model.is_half", True),
      sample=True)

plant("a sequence of length 0", "lstm", "forward, input", bad("lengths", 0), sample=True)
plant("a gap in nanoseconds", "lstm", "input, forward", bad("gaps", 1e18, 4), sample=True)
plant("a carried state that is NaN", "lstm", "forward", sets("model.carries", True),
      midway(lambda task: task.model.carried[1].view(-1)[3].fill_(float("nan"))), where="lstm, carried")
plant("more symbols spoken than there are frames", "lstm", "loss, label", sets("way", "ctc"),
      lambda task: task.data.columns["lengths"].clamp_(min=7), bad("lengths", 2), sample=True)
