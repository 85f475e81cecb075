"""Planted causes of failures in small real trainings, for `causes.py`; written before the code that looks for them.

Four models (an MLP, a CNN with BatchNorm, a transformer, a VAE) in float32 and bfloat16, each with every kind of cause
that it can have. Half of the plants are held out: `Plant.is_held_out` follows from the name alone.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

NUM_SAMPLES, BATCH_SIZE, NUM_STEPS, PLANTED_AT = 256, 16, 80, 40
BAD = 77
"""The sample that is planted."""


class CustomNorm(nn.Module):
    """Divides each sample by its length; a sample of zeros is 0/0."""

    def forward(self, x):
        length = x.flatten(1).pow(2).sum(1).sqrt()
        return x / length.reshape(-1, *[1] * (x.ndim - 1))


class BatchStd(nn.Module):
    """Divides by the spread over the batch, which one sample alone does not have."""

    def forward(self, x):
        return (x - x.mean(0)) / x.std(0).clamp_min(0.1)


class ExpGate(nn.Module):
    """An exponential without a bound."""

    def forward(self, x):
        return x * torch.exp(x) / (1 + torch.exp(x))


class Attention(nn.Module):
    """Attention whose softmax does not subtract the largest score, as people write it by hand."""

    def __init__(self, width):
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.is_naive = False

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.transpose(1, 2) / x.shape[-1] ** 0.5
        if self.is_naive:
            weights = torch.exp(scores)
            weights = weights / weights.sum(-1, keepdim=True)
        else:
            weights = torch.softmax(scores, -1)
        return self.out(weights @ v)


class Block(nn.Module):
    """One layer of the transformer."""

    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x) if not self.attn.is_naive else x)
        return x + self.mlp(self.norm2(x))


class Mlp(nn.Module):
    """Two hidden layers."""

    def __init__(self):
        super().__init__()
        self.front, self.gate = nn.Identity(), nn.Identity()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.gate(self.layers(self.front(x))))


class Cnn(nn.Module):
    """Two convolutions with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.front, self.gate = nn.Identity(), nn.Identity()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.front(x.reshape(-1, 1, 4, 4))
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(self.gate(x.mean((2, 3))))


class Transformer(nn.Module):
    """Two layers with attention over four tokens."""

    def __init__(self):
        super().__init__()
        self.front, self.gate = nn.Identity(), nn.Identity()
        self.embed = nn.Linear(4, 16)
        self.blocks = nn.ModuleList([Block(16), Block(16)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(self.front(x).reshape(-1, 4, 4))
        for block in self.blocks:
            x = block(x)
        return self.head(self.gate(x.mean(1)))


class Vae(nn.Module):
    """A variational autoencoder, which draws random numbers."""

    def __init__(self):
        super().__init__()
        self.front, self.gate = nn.Identity(), nn.Identity()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.ReLU())
        self.mean, self.log_variance = nn.Linear(32, 4), nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 16))

    def forward(self, x):
        x = self.front(x)
        hidden = self.gate(self.encoder(x))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


MODELS = {"mlp": Mlp, "cnn": Cnn, "transformer": Transformer, "vae": Vae}


class Data(torch.utils.data.Dataset):
    """Inputs, labels and a weight for each sample; one sample may be spoilt by its random augmentation."""

    def __init__(self, seed, count=NUM_SAMPLES):
        dice = torch.Generator().manual_seed(seed)
        centres = torch.randn(4, 16, generator=dice)
        self.labels = torch.randint(4, (count,), generator=dice)
        self.inputs = centres[self.labels] + 0.5 * torch.randn(count, 16, generator=dice)
        self.weights = torch.ones(count)
        self.is_augmented = False

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        x = self.inputs[index]
        if self.is_augmented and index == BAD and torch.rand(()) < 0.7:
            crop = torch.zeros(4)
            x = torch.cat([x[:12], crop / crop.std()])
        return x, self.labels[index], self.weights[index]


@dataclass
class Task:
    """A training that something is planted in."""

    model_name: str
    dtype: torch.dtype
    seed: int = 0
    lr: float = 3e-3
    optimizer_name: str = "adam"
    loss_scale: float = 1.0
    extra: str = ""
    data: Data = field(init=False)
    model: nn.Module = field(init=False)

    def __post_init__(self):
        torch.manual_seed(self.seed)
        self.data = Data(self.seed)
        self.model = MODELS[self.model_name]()

    def build(self):
        self.model.to(self.dtype)
        kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
        self.optimizer = kinds[self.optimizer_name](self.model.parameters(), lr=self.lr)

    def losses(self, batch):
        """The loss of each sample: float[B]."""
        x, labels, weights = batch
        outputs = self.model(x.to(self.dtype))
        if self.model_name == "vae":
            decoded, mean, log_variance = (each.float() for each in outputs)
            losses = (decoded - x).pow(2).mean(1)
            losses = losses + 0.01 * (mean.pow(2) + log_variance.exp() - log_variance - 1).sum(1)
            first = mean
        else:
            first = outputs.float()
            losses = F.cross_entropy(first, labels, reduction="none") if self.extra != "bce" else bce(first, labels)
        if self.extra == "log":
            losses = losses - 0.01 * torch.log(weights)
        elif self.extra == "ratio":
            losses = losses * (weights * first.detach().abs().mean(1)) / (weights * first.detach().abs().mean(1))
        elif self.extra == "sqrt":
            losses = losses + 0.01 * torch.sqrt((weights[:, None] * first).pow(2).sum(1))
        return losses * self.loss_scale

    def run_batch(self, batch):
        return self.losses(batch).mean()


def bce(logits, labels):
    """Binary cross entropy with the label, over the number of classes, as its target."""
    return F.binary_cross_entropy_with_logits(logits.mean(1), labels / 3, reduction="none")


@dataclass(frozen=True)
class Plant:
    """A cause in a training.

    Attributes:
        kind: What is planted.
        model, dtype: In what.
        kinds: What the recorder may call it.
        names_sample: Whether naming the sample is right, and where `where` is not named needed.
        where: What the place may be called, of which one is to be in it; empty where only the sample counts.
    """

    kind: str
    model: str
    dtype: str
    kinds: tuple[str, ...]
    names_sample: bool = False
    where: tuple[str, ...] = ()

    @property
    def name(self):
        return f"{self.kind}/{self.model}/{self.dtype}"

    @property
    def is_held_out(self):
        return bool(zlib.crc32(self.name.encode()) & 1)

    def task(self) -> Task:
        """The training that it is planted in."""
        return Task(self.model, getattr(torch, self.dtype))

    def prepare(self, task: Task) -> None:
        """Plant what is there from the start."""
        data, model, kind = task.data, task.model, self.kind
        if kind == "nan input":
            data.inputs[BAD, 5] = float("nan")
        elif kind == "inf input":
            data.inputs[BAD, 9] = float("inf")
        elif kind == "label":
            self._spoil_label(task)
        elif kind in ("log(0)", "0/0", "sqrt'(0)"):
            task.extra = {"log(0)": "log", "0/0": "ratio", "sqrt'(0)": "sqrt"}[kind]
            data.weights[BAD] = 0.0
        elif kind == "attention overflow":
            for block in model.blocks:
                block.attn.is_naive = True
            data.inputs[BAD] *= 300
        elif kind == "exp overflow":
            model.gate = ExpGate()
            data.inputs[BAD] *= 3e4
        elif kind == "custom norm":
            model.front = CustomNorm()
            data.inputs[BAD] = 0.0
        elif kind == "batch of one":
            model.gate = BatchStd()
            task.data = Data(task.seed, NUM_SAMPLES - BATCH_SIZE + 1)
        elif kind == "no warm-up":
            task.lr, task.optimizer_name = (30.0, "sgd")
        elif kind == "augmented":
            data.is_augmented = True

    def _spoil_label(self, task):
        data = task.data
        if task.model_name == "vae":
            # Its target is its input.
            data.inputs[BAD] = 3e4
        elif task.model_name in ("mlp", "transformer"):
            task.extra = "bce"
            data.labels[BAD] = 100_000
        else:
            # A batch without any label at all: the mean over none.
            task.extra = "bce"
            data.labels[BAD] = -100_000

    def strike(self, task: Task, step: int) -> None:
        """Plant what comes in mid-run."""
        if step != PLANTED_AT:
            return
        if self.kind == "rate too high":
            for group in task.optimizer.param_groups:
                group["lr"] *= 3e3
        elif self.kind == "damaged weight":
            with torch.no_grad():
                dict(task.model.named_parameters())[DAMAGED[task.model_name]].view(-1)[3] = 1e30
        elif self.kind == "damaged optimizer":
            parameter = dict(task.model.named_parameters())[DAMAGED[task.model_name]]
            task.optimizer.state[parameter]["exp_avg"].view(-1)[3] = 1e25
        elif self.kind == "loss scale":
            task.loss_scale = 1e39


DAMAGED = {
    "mlp": "layers.2.weight", "cnn": "conv2.weight", "transformer": "blocks.1.mlp.0.weight", "vae": "decoder.0.weight",
}  # fmt: skip


def plants() -> list[Plant]:
    """All plants."""
    found = []
    for model in MODELS:
        for dtype in ("float32", "bfloat16"):

            def add(kind, kinds, *, names_sample=False, where=(), model=model, dtype=dtype):
                found.append(Plant(kind, model, dtype, tuple(kinds), names_sample, tuple(where)))

            add("nan input", ["input"], names_sample=True)
            add("inf input", ["input"], names_sample=True)
            add("label", ["label", "input"], names_sample=True)
            add("log(0)", ["loss"], names_sample=True, where=["log"])
            add("0/0", ["loss"], names_sample=True, where=["div"])
            add("sqrt'(0)", ["loss", "backward"], names_sample=True, where=["sqrt", "Sqrt"])
            if model == "transformer":
                add("attention overflow", ["forward", "input"], names_sample=True, where=["attn"])
            else:
                add("exp overflow", ["forward", "input"], names_sample=True, where=["gate"])
            add("custom norm", ["forward"], names_sample=True, where=["front"])
            if model in ("mlp", "cnn", "transformer"):
                add("batch of one", ["batch size"], where=["gate"])
            add("rate too high", ["update"])
            add("no warm-up", ["update"])
            add("damaged weight", ["weight"], where=[DAMAGED[model]])
            add("damaged optimizer", ["optimizer"], where=[DAMAGED[model]])
            add("augmented", ["input"], names_sample=True)
            add("loss scale", ["scale", "loss"], where=["scale", "mul", "factor"])
    return found
