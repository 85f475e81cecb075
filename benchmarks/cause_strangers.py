"""More planted causes, for `causes.py`, by somebody who had not seen the code that looks for them.

Other models than in `cause_plants.py`, as they are written elsewhere: batches are dictionaries, the MLP has categories
and dropout, the CNN residual blocks, the transformer tokens, masks and `scaled_dot_product_attention`, the VAE a
Bernoulli likelihood. bfloat16 is autocast for the CNN and the transformer, and bfloat16 weights for the others.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cause_plants import NUM_SAMPLES, PLANTED_AT
from torch import nn
from torch.nn import functional as F


class Tabular(nn.Module):
    """Numbers and a category, with dropout."""

    def __init__(self):
        super().__init__()
        self.scaler, self.activation = nn.Identity(), nn.SiLU()
        self.city = nn.Embedding(10, 4)
        self.fc1, self.fc2, self.fc3 = nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 4)

    def forward(self, x, city):
        h = torch.cat([self.scaler(x), self.city(city)], 1)
        h = F.dropout(self.activation(self.fc1(h)), 0.1, self.training)
        return self.fc3(self.activation(self.fc2(h)))


class Residual(nn.Module):
    """Two convolutions with BatchNorm beside a way around them."""

    def __init__(self, width):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResNet(nn.Module):
    """A small residual network for images."""

    def __init__(self):
        super().__init__()
        self.normalize, self.whiten = nn.Identity(), nn.Identity()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.stages = nn.Sequential(Residual(8), nn.MaxPool2d(2), Residual(8))
        self.classifier = nn.Linear(8, 4)

    def forward(self, image):
        h = self.stages(self.stem(self.normalize(image)))
        return self.classifier(self.whiten(h.mean((2, 3))))


class RmsNorm(nn.Module):
    """A norm without the mean."""

    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.gain, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.gain


class SelfAttention(nn.Module):
    """Causal attention with an additive bias."""

    def __init__(self, width):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.proj, self.heads, self.is_fused = nn.Linear(width, width), 2, True

    def forward(self, x, bias):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.is_fused:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        else:
            y = F.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias, -1).to(v.dtype) @ v
        return self.proj(y.transpose(1, 2).flatten(2))


class Decoder(nn.Module):
    """A language model over 32 tokens."""

    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(32, 16, padding_idx=0), nn.Embedding(8, 16)
        self.ln_emb = nn.Identity()
        self.h = nn.ModuleList(
            nn.ModuleDict({
                "ln_1": RmsNorm(16), "attn": SelfAttention(16), "ln_2": RmsNorm(16),
                "mlp": nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)),
            }) for _ in range(3)
        )  # fmt: skip
        self.ln_f, self.lm_head = RmsNorm(16), nn.Linear(16, 32, bias=False)

    def forward(self, tokens, bias):
        x = self.ln_emb(self.wte(tokens)) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = x + block["attn"](block["ln_1"](x), bias)
            x = x + block["mlp"](block["ln_2"](x))
        return self.lm_head(self.ln_f(x))


class BernoulliVae(nn.Module):
    """An autoencoder of values between 0 and 1."""

    def __init__(self):
        super().__init__()
        self.enc1, self.bn, self.enc2 = nn.Linear(16, 32), nn.BatchNorm1d(32), nn.Linear(32, 32)
        self.mu, self.logvar = nn.Linear(32, 3), nn.Linear(32, 3)
        self.dec = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 16))
        self.has_norm = True

    def forward(self, x):
        h = self.enc1(x)
        h = F.relu(self.enc2(F.relu(self.bn(h) if self.has_norm else h)))
        mu, logvar = self.mu(h), self.logvar(h)
        return self.dec(mu + torch.randn_like(mu) * (0.5 * logvar).exp()), mu, logvar


MODELS = {"mlp": Tabular, "cnn": ResNet, "transformer": Decoder, "vae": BernoulliVae}


def columns_of(model: str) -> dict[str, torch.Tensor]:
    """The data of a model: one tensor per column, a row for each sample."""
    dice = torch.Generator().manual_seed(11)

    def noise(*shape):
        return torch.randn(NUM_SAMPLES, *shape, generator=dice)

    label = torch.randint(4, (NUM_SAMPLES,), generator=dice)
    weight = torch.ones(NUM_SAMPLES)
    if model == "mlp":
        x = torch.randn(4, 12, generator=dice)[label] + 0.7 * noise(12)
        city = torch.randint(10, (NUM_SAMPLES,), generator=dice)
        return {"x": x, "city": city, "label": label, "weight": weight, "target": F.one_hot(label, 4).float()}
    if model == "cnn":
        image = torch.randn(4, 3, 8, 8, generator=dice)[label] + noise(3, 8, 8)
        soft = 0.9 * F.one_hot(label, 4).float() + 0.025
        return {"image": image, "label": label, "weight": weight, "soft": soft}
    if model == "transformer":
        tokens = (torch.arange(9) * (1 + label[:, None]) + torch.randint(31, (NUM_SAMPLES, 1), generator=dice)) % 31 + 1
        mask = torch.ones(NUM_SAMPLES, 8)
        gap = torch.rand(NUM_SAMPLES, 8, generator=dice)
        return {"tokens": tokens[:, :-1], "targets": tokens[:, 1:].clone(), "mask": mask, "gap": gap, "weight": weight}
    x = torch.sigmoid(2 * torch.randn(4, 16, generator=dice)[label] + noise(16))
    return {"x": x, "spread": weight, "weight": weight.clone()}


class Rows(torch.utils.data.Dataset):
    """Rows of columns, each through a random augmentation."""

    def __init__(self, columns):
        self.columns, self.augment = columns, None

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        row = {name: column[index] for name, column in self.columns.items()}
        return row if self.augment is None else self.augment(index, row)


class StrangeTask:
    """A training that something is planted in."""

    def __init__(self, model_name: str, dtype: str):
        torch.manual_seed(0)
        self.model_name, self.dtype = model_name, getattr(torch, dtype)
        self.data = Rows(columns_of(model_name))
        self.model = MODELS[model_name]()
        self.is_autocast = dtype == "bfloat16" and model_name in ("cnn", "transformer")
        self.optimizer_of: Callable[[Any], torch.optim.Optimizer] = lambda weights: torch.optim.AdamW(weights, 3e-3)
        self.extra: Callable[[Any, Any, Any], torch.Tensor] | None = None
        self.bias_of: Callable[[Any], torch.Tensor] = lambda batch: torch.zeros(len(batch["mask"]), 1, 1, 8)
        self.loss_scale, self.beta = 1.0, 0.05
        self.at_step: Callable[[], None] = lambda: None

    def build(self):
        if not self.is_autocast:
            self.model.to(self.dtype)
        self.optimizer = self.optimizer_of(self.model.parameters())

    def losses(self, batch):
        """The loss of each sample: float[B]."""
        around = torch.autocast("cpu", torch.bfloat16) if self.is_autocast else contextlib.nullcontext()
        with around:
            outputs, losses = getattr(self, f"_{self.model_name}")(batch)
        if self.extra is not None:
            losses = self.extra(batch, outputs, losses)
        return losses * self.loss_scale

    def _cast(self, x):
        return x.float() if self.is_autocast else x.to(self.dtype)

    def _mlp(self, batch):
        logits = self.model(self._cast(batch["x"]), batch["city"]).float()
        return logits, F.cross_entropy(logits, batch["label"], reduction="none") * batch["weight"]

    def _cnn(self, batch):
        logits = self.model(self._cast(batch["image"])).float()
        return logits, -(batch["soft"] * F.log_softmax(logits, 1)).sum(1)

    def _transformer(self, batch):
        causal = torch.full((8, 8), float("-inf")).triu(1)
        logits = self.model(batch["tokens"], causal + self.bias_of(batch)).float()
        losses = F.cross_entropy(logits.transpose(1, 2), batch["targets"], reduction="none", ignore_index=-100)
        kept = batch["mask"] * (batch["targets"] != -100)
        return logits, (losses * kept).sum(1) / kept.sum(1) * batch["weight"]

    def _vae(self, batch):
        decoded, mu, logvar = (each.float() for each in self.model(self._cast(batch["x"])))
        errors = F.binary_cross_entropy_with_logits(decoded, batch["x"].float(), reduction="none").mean(1)
        return (decoded, mu, logvar), errors + self.beta * 0.5 * (mu.pow(2) + logvar.exp() - logvar - 1).mean(1)

    def run_batch(self, batch):
        return self.losses(batch).mean()


@dataclass(frozen=True)
class StrangePlant:
    """A cause in a training, as `cause_plants.Plant`; `plant` changes a task, at once or by its `at_step`."""

    name: str
    task: Callable[[], Any]
    kinds: tuple[str, ...]
    plant: Callable[[Any], None]
    names_sample: bool = False
    where: tuple[str, ...] = ()
    blames_nobody: bool = False

    @property
    def is_held_out(self):
        return bool(zlib.crc32(self.name.encode()) & 1)

    def prepare(self, task: Any) -> None:
        self.plant(task)

    def strike(self, task: Any, step: int) -> None:
        if step == PLANTED_AT:
            with torch.no_grad():
                task.at_step()
