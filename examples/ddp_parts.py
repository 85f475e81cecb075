"""The digits, and the result of a training on several ranks, for ddp.py and ddp_plain.py."""

import argparse
import hashlib
import time

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPOILED_READ = 5000


def arguments():
    """What was asked for on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--spoil", action="store_true", help="let one image that rank 1 reads be NaN")
    return parser.parse_args()


class Digits(torch.utils.data.Dataset):
    """Images of digits; on rank 1, if it is to be spoiled, one of them is read as NaN once."""

    def __init__(self, images, labels, spoil):
        self.images, self.labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
        self.reads_left = SPOILED_READ if spoil and dist.get_rank() == 1 else -1

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.reads_left -= 1
        image = self.images[index]
        return (image * float("nan") if self.reads_left == 0 else image), self.labels[index]


def load(spoil=False):
    """Digits to train on, and images and labels to test on."""
    data = load_digits()
    images, test_images, labels, test_labels = train_test_split(data.data, data.target, random_state=0)
    return Digits(images, labels, spoil), Digits(test_images, test_labels, spoil=False)


def classifier():
    """A small network."""
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))


@torch.no_grad()
def print_accuracy(epoch, model, test):
    """Say on rank 0 how good the model is."""
    if dist.get_rank() == 0:
        accuracy = (model.module(test.images).argmax(1) == test.labels).float().mean().item()
        print(f"epoch {epoch + 1}: test accuracy {accuracy:.1%}")


def finish(model, r8=None):
    """Say on rank 0 whether all ranks have the same; with a scheduler, what it knows of the samples too."""
    digest = hashlib.sha256(b"".join(each.detach().numpy().tobytes() for each in model.parameters()))
    if r8 is not None:
        digest.update(r8.table.loss.tobytes())
    digests = [""] * dist.get_world_size()
    dist.all_gather_object(digests, digest.hexdigest())
    if dist.get_rank() == 0 and r8 is not None:
        print(f"{len(digests)} ranks, {r8.global_step} steps, losses refused: {r8.sentry.num_refused}")
    if dist.get_rank() == 0:
        print(f"{'models' if r8 is None else 'tables and models'} of all ranks are equal: {len(set(digests)) == 1}")
    dist.destroy_process_group()
    # The model keeps threads of gloo alive; one that still holds a message when Python ends would abort the process.
    time.sleep(0.2)
