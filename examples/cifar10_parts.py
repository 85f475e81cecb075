"""CIFAR-10 and a small ResNet, for torch_cifar10.py and torch_cifar10_plain.py."""

import argparse
import io
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("LEARNIT_R8_DATA") or HERE.parents[1] / "shared" / "data")


def arguments():
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=DATA, help="folder with cifar10_jpeg.npz; the digits without")
    parser.add_argument("--samples", type=int, default=None, help="train on the first so many; all by default")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--width", type=int, default=16, help="channels of the first layer")
    return parser.parse_args()


def load(folder, samples=None):
    """uint8[N, 3, 32, 32] and int64[N] to train on, and the same to test on."""
    path = Path(folder) / "cifar10_jpeg.npz"
    if not path.is_file():
        print(f"{path} is not there; training on the digits (--data FOLDER or LEARNIT_R8_DATA tells where it is)")
        return digits(samples)
    with np.load(path) as file:
        return [decoded(file, "train", samples), decoded(file, "test", samples and samples // 5)]


def decoded(file, part, count):
    """Images and labels out of a file of JPEGs one behind the other."""
    from PIL import Image

    labels = file[f"{part}_label"][:count].astype(np.int64)
    content, offsets = file[f"{part}_jpeg"], file[f"{part}_offset"]
    images = np.empty((len(labels), 32, 32, 3), np.uint8)
    for number in range(len(labels)):
        images[number] = Image.open(io.BytesIO(content[offsets[number] : offsets[number + 1]].tobytes()))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def digits(samples=None):
    """scikit-learn's digits as small colour images."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy(data.images * 15).to(torch.uint8).repeat_interleave(2, 1).repeat_interleave(2, 2)
    images, labels = images[:, None].repeat(1, 3, 1, 1), torch.from_numpy(data.target).long()
    split = min(samples or 1400, 1400)
    return (images[:split], labels[:split]), (images[1400:], labels[1400:])


class Augmented(torch.utils.data.Dataset):
    """Images shifted and mirrored at random, a batch at a time."""

    def __init__(self, images, labels):
        self.images, self.labels = nn.functional.pad(images, (4, 4, 4, 4)), labels
        self.size = images.shape[-1]

    def __len__(self):
        return len(self.labels)

    def __getitems__(self, indices):
        """One crop for the batch, and each image mirrored or not: cheap, and good enough here."""
        rows = torch.as_tensor(indices)
        top, left = torch.randint(9, (2,)).tolist()
        images = self.images[rows, :, top : top + self.size, left : left + self.size]
        mirrored = torch.rand(len(rows)) < 0.5
        images[mirrored] = images[mirrored].flip(-1)
        return images.float() / 127.5 - 1, self.labels[rows]


def as_is(batch):
    """The batch is one already."""
    return batch


class Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        self.around = nn.Conv2d(inputs, outputs, 1, 2)

    def forward(self, x):
        return torch.relu(self.second(self.first(x)) + self.around(x))


def resnet(width, classes=10):
    """A small residual network."""
    stem = nn.Sequential(nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    blocks = [Block(width, 2 * width), Block(2 * width, 4 * width), Block(4 * width, 4 * width)]
    return nn.Sequential(stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes))


@torch.no_grad()
def accuracy(model, images, labels, device):
    """Share of the images that the model gets right."""
    model.eval()
    right = 0
    for x, y in zip(images.split(500), labels.split(500), strict=True):
        right += (model(x.to(device).float() / 127.5 - 1).argmax(1).cpu() == y).sum().item()
    model.train()
    return right / len(labels)
