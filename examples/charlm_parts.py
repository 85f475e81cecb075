"""Characters of Shakespeare and a small transformer, for torch_charlm.py and torch_charlm_plain.py."""

import argparse
import os
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
DATA = Path(os.environ.get("LEARNIT_R8_DATA") or HERE.parents[1] / "shared" / "data")
LENGTH = 64


def arguments():
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder with tinyshakespeare.txt; a made-up text without"
    )
    parser.add_argument("--steps", type=int, default=1000)
    return parser.parse_args()


def load(folder):
    """The text as int64[N], and the number of its characters."""
    path = Path(folder) / "tinyshakespeare.txt"
    if path.is_file():
        text = path.read_text()
    else:
        print(f"{path} is not there; training on a made-up text (--data FOLDER or LEARNIT_R8_DATA tells where it is)")
        text = "".join(
            f"{n} and {n + 1} make {2 * n + 1}, said the {['cat', 'dog', 'owl'][n % 3]}. " for n in range(1500)
        )
    letters = sorted(set(text))
    place = {letter: number for number, letter in enumerate(letters)}
    return torch.tensor([place[letter] for letter in text]), len(letters)


class Windows(torch.utils.data.Dataset):
    """Pieces of a text, half overlapping, with the next character of each."""

    def __init__(self, text):
        self.text = text

    def __len__(self):
        return (len(self.text) - LENGTH - 1) // (LENGTH // 2) + 1

    def __getitem__(self, index):
        start = index * (LENGTH // 2)
        return self.text[start : start + LENGTH], self.text[start + 1 : start + LENGTH + 1]


class CharLM(nn.Module):
    """A small causal transformer."""

    def __init__(self, letters, width=64, layers=2, heads=4):
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(LENGTH, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, letters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH), persistent=False)

    def forward(self, x):
        """float[B, letters, T], as `cross_entropy` takes it."""
        rows = self.letters(x) + self.places.weight[: x.shape[1]]
        return self.head(self.layers(rows, mask=self.mask, is_causal=True)).transpose(1, 2)


@torch.no_grad()
def mean_loss(model, data, device, count=20):
    """Mean loss over the last windows of a text."""
    model.eval()
    pairs = [data[len(data) - 1 - number] for number in range(min(count, len(data)))]
    x, y = (torch.stack(column).to(device) for column in zip(*pairs, strict=True))
    loss = nn.functional.cross_entropy(model(x), y).item()
    model.train()
    return loss
