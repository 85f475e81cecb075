"""The tasks of benchmarks/learning.py that need torch: houses, images and text; on a GPU where there is one."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path

from learning_tasks import DATA, Floats, Indices, Labels, Score, spoilt

# isort: split
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parent.parent / "examples"))

from cifar10_parts import decoded

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Optimizer = torch.optim.Optimizer


class _Learner:
    """Trains a torch model on the losses of single samples."""

    num_samples: int
    labels: Indices | None = None
    is_wrong: NDArray[np.bool_] = np.zeros(0, bool)

    def __init__(self, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.model = self.new_model().to(DEVICE, memory_format=torch.channels_last)
        self.optimizer = self.new_optimizer()

    def new_model(self) -> nn.Module:
        raise NotImplementedError

    def new_optimizer(self) -> Optimizer:
        return torch.optim.Adam(self.model.parameters())

    def losses_of(self, rows: Tensor) -> Tensor:
        """float32[B], of samples to train on."""
        raise NotImplementedError

    def held_out(self, briefly: bool) -> Iterator[Tensor]:
        """Parts of the values whose mean is the result."""
        raise NotImplementedError

    def step(self, indices: Indices, lr: float, weights: Floats | None) -> Floats:
        losses = self.losses_of(torch.from_numpy(indices))
        weighted = losses if weights is None else losses * torch.from_numpy(weights).to(DEVICE)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        weighted.mean().backward()
        self.optimizer.step()
        values: Floats = losses.detach().cpu().numpy()
        return values

    def score(self, *, briefly: bool) -> Score:
        self.model.eval()
        with torch.no_grad():
            result = float(torch.cat(list(self.held_out(briefly))).double().mean())
        self.model.train()
        return Score(result)


class Housing(_Learner):
    """Eight numbers of a district to its median price, a fifth of the districts held out; squared error, Adam."""

    def __init__(self, seed: int, table: Floats) -> None:
        super().__init__(seed)
        order = np.random.default_rng([11, seed]).permutation(len(table))
        held_out, kept = np.split(table[order], [len(table) // 5])
        self.num_samples = len(kept)
        mean, spread = kept[:, :-1].mean(0), kept[:, :-1].std(0)
        self._parts = [
            (torch.from_numpy((part[:, :-1] - mean) / spread).to(DEVICE), torch.from_numpy(part[:, -1:]).to(DEVICE))
            for part in (kept, held_out)
        ]

    def new_model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def losses_of(self, rows: Tensor) -> Tensor:
        x, y = self._parts[0]
        return (self.model(x[rows]) - y[rows]).square().squeeze(1)

    def held_out(self, briefly: bool) -> Iterator[Tensor]:
        x, y = self._parts[1]
        yield (self.model(x) - y).square().squeeze(1)


@functools.lru_cache
def images(part: str, count: int) -> tuple[Tensor, Indices]:
    """uint8[count, 32, 32, 3] and int64[count], the first of CIFAR-10's "train" or "test" images and their classes."""
    with np.load(DATA / "cifar10_jpeg.npz") as file:
        found, labels = decoded(file, part, count)
    return found.permute(0, 2, 3, 1).contiguous(), labels.numpy()


def normalised(pixels: Tensor) -> Tensor:
    """float32[B, 3, 32, 32] of uint8[B, 32, 32, 3], each about standard normal, in channels_last."""
    return ((pixels.to(DEVICE).float() - 121) / 64).permute(0, 3, 1, 2)


class Cifar(_Learner):
    """10,000 images of CIFAR-10, mirrored and shifted by up to 4 pixels at random; three convolutions; SGD.

    Without a GPU 10,000 others tell how good it is, 2,000 of them for a brief look. ResNet-18 on all of the data would
    take a GPU and is left out.
    """

    def __init__(self, seed: int, how: Labels) -> None:
        super().__init__(seed)
        pixels, labels = images("train", 10_000)
        kept, self.labels, self.is_wrong = spoilt(labels, how, seed)
        self._pixels = functional.pad(pixels[kept], (0, 0, 4, 4, 4, 4), value=121)
        self._targets = torch.from_numpy(self.labels)
        self.num_samples = len(kept)

    def new_model(self) -> nn.Module:
        def layer(inputs: int, outputs: int, size: int, stride: int) -> list[nn.Module]:
            convolution = nn.Conv2d(inputs, outputs, size, stride, 1, bias=False)
            return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

        # Steps of 2 and no pooling at full size, which would take most of the time.
        layers = [*layer(3, 32, 4, 2), *layer(32, 64, 3, 2), *layer(64, 64, 3, 1), nn.MaxPool2d(2)]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 10))

    def new_optimizer(self) -> Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def losses_of(self, rows: Tensor) -> Tensor:
        count, places = len(rows), torch.arange(32)
        top, left = torch.randint(9, (2, count, 1), generator=self.generator)
        mirrored = torch.rand(count, 1, generator=self.generator) < 0.5
        down, across = top + places, left + torch.where(mirrored, 31 - places, places)
        pixels = self._pixels[rows[:, None, None], down[:, :, None], across[:, None, :]]
        targets = self._targets[rows].to(DEVICE)
        return functional.cross_entropy(self.model(normalised(pixels)), targets, reduction="none")

    def held_out(self, briefly: bool) -> Iterator[Tensor]:
        pixels, labels = images("test", 10_000)
        count = 2_000 if briefly else len(labels)
        for x, y in zip(pixels[:count].split(500), torch.from_numpy(labels[:count]).split(500), strict=True):
            yield 100 * (self.model(normalised(x)).argmax(1).cpu() == y).float()


LENGTH, NUM_WINDOWS, NUM_HELD_OUT = 64, 3_000, 500


@functools.lru_cache
def text() -> tuple[Tensor, int]:
    """The text as int64[M], and the number of its characters."""
    content = (DATA / "tinyshakespeare.txt").read_text()
    letters = sorted(set(content))
    place = {letter: number for number, letter in enumerate(letters)}
    return torch.tensor([place[letter] for letter in content]), len(letters)


class _Transformer(nn.Module):
    """A causal transformer over characters."""

    def __init__(self, letters: int, width: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, x: Tensor) -> Tensor:
        rows = self.letters(x) + self.places.weight
        scores: Tensor = self.head(self.layers(rows, mask=self.mask, is_causal=True))
        return scores.transpose(1, 2)


class Shakespeare(_Learner):
    """3,000 windows of 64 characters of Shakespeare's plays, 500 behind the text they are from held out; Adam."""

    num_samples = NUM_WINDOWS

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        whole, _ = text()
        order = torch.from_numpy(np.random.default_rng([13, seed]).permutation(len(whole) * 9 // 10 // LENGTH - 1))
        self._starts = order[:NUM_WINDOWS] * LENGTH
        self._held_out = len(whole) * 9 // 10 + torch.arange(NUM_HELD_OUT) * LENGTH

    def new_model(self) -> nn.Module:
        return _Transformer(text()[1])

    def _losses_from(self, starts: Tensor) -> Tensor:
        pieces = text()[0][starts[:, None] + torch.arange(LENGTH + 1)].to(DEVICE)
        return functional.cross_entropy(self.model(pieces[:, :-1]), pieces[:, 1:], reduction="none").mean(1)

    def losses_of(self, rows: Tensor) -> Tensor:
        return self._losses_from(self._starts[rows])

    def held_out(self, briefly: bool) -> Iterator[Tensor]:
        for starts in self._held_out[: 200 if briefly else NUM_HELD_OUT].split(100):
            yield self._losses_from(starts)
