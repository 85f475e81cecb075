"""Training scripts as people write them: each with R8 in it, and without, for wild.py and for tests.

They have the features of scripts that nobody here wrote: shuffling and augmentation, workers, weighted and bucketed
sampling, streams without a length, accumulation, mixed precision, clipping, schedules of epochs and steps, averaged
weights, two networks, hidden states, losses that jump or raise, closures, loops without epochs. What R8 adds to a
script is one line before the loop, the source of the batches, and the condition of the step.
"""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, WeightedRandomSampler

from learnit_r8.engine.settings import grouped
from learnit_r8.torch import attach


def seed_all(seed=0):
    """Seed every global generator."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


class Net(nn.Module):
    """A network with batch norm and dropout."""

    def __init__(self, inputs=8, outputs=4):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, outputs)
        )

    def forward(self, x):
        return self.layers(x)


def clouds(count=96, inputs=8, classes=4, seed=1):
    """Points around class centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (classes, inputs))
    labels = rng.integers(0, classes, count)
    points = centres[labels] + rng.normal(0, 1, (count, inputs))
    return torch.tensor(points, dtype=torch.float32), torch.tensor(labels)


class Augmented(Dataset):
    """Points with noise from the global generators of all three kinds."""

    def __init__(self):
        self.x, self.y = clouds()

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        noise = 0.01 * (torch.randn(8) + np.random.randn() + random.random())
        return self.x[index] + noise, self.y[index]


class Stream(IterableDataset):
    """A stream that knows no length, in parts for workers."""

    def __iter__(self):
        info = torch.utils.data.get_worker_info()
        part, parts = (0, 1) if info is None else (info.id, info.num_workers)
        x, y = clouds()
        yield from list(zip(x, y, strict=True))[part::parts]


class Buckets:
    """Batches of similar lengths, of different sizes."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __iter__(self):
        order = sorted(range(len(self.lengths)), key=lambda one: (self.lengths[one], random.random()))
        batches = [order[start : start + 5 + start % 3] for start in range(0, len(order), 7)]
        random.shuffle(batches)
        return iter(batches)

    def __len__(self):
        return -(-len(self.lengths) // 7)


class Script:
    """A script: its models, loaders and loop.

    Args:
        with_r8: Whether R8 watches it.
        hook: ``(step, script)``, called before each step.
        settings: For `attach`.
    """

    epochs = 4
    also = None

    def __init__(self, *, with_r8=True, hook=lambda step, script: None, **settings):
        self.with_r8, self.hook, self.settings, self.number = with_r8, hook, settings, 0
        self.order, self.losses = [], []
        self.r8 = None
        self.build()
        if with_r8:
            self.attach()

    def attach(self):
        """The line before the loop."""
        budget = {"num_epochs": self.epochs} if self.epochs else {}
        given = {"handle_signals": False, "backup_every": 8, "also": self.also, **budget, **self.settings}
        self.r8 = attach(self.model, self.optimizer, self.loader, **grouped(given))

    @property
    def batches(self):
        """The line of the loop."""
        for batch in self.r8.batches() if self.with_r8 else self.loader:
            self.tick()
            yield batch

    def tick(self):
        """What happens before each step."""
        self.hook(self.number, self)
        self.number += 1

    def ok(self, *losses):
        """The condition of the step."""
        self.losses.append(float(sum(loss.detach() for loss in losses)))
        return self.r8.report(*losses) if self.with_r8 else True

    def first_epoch(self):
        return self.r8.scheduler.current_epoch if self.with_r8 else 0

    def run(self):
        for _ in range(self.first_epoch(), self.epochs):
            self.epoch()
        if self.with_r8:
            self.r8.close()
        return self

    def parts(self):
        """Everything that is trained."""
        return [self.model, self.optimizer]

    def state(self):
        """All that a run without an incident must leave as it was without R8."""
        np_state = np.random.get_state()
        return {
            "parts": [part.state_dict() for part in self.parts()],
            "torch": torch.get_rng_state(),
            "numpy": [np_state[1].tolist(), np_state[2]],
            "python": random.getstate(),
            "order": self.order,
            "losses": self.losses,
        }


class Epochs(Script):
    """A loader with shuffling and augmentation, Adam, a schedule of each epoch."""

    num_workers = 0

    def build(self):
        self.loader = DataLoader(Augmented(), batch_size=10, shuffle=True, num_workers=self.num_workers)
        self.model = Net()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 1, gamma=0.5)
        self.also = {"schedule": self.schedule}

    def epoch(self):
        for x, y in self.batches:
            self.order.append(x.sum().item())
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            if self.ok(loss):
                loss.backward()
                self.optimizer.step()
        self.schedule.step()


class Workers(Epochs):
    """The same with two workers."""

    num_workers = 2


class OwnGenerator(Epochs):
    """A loader with a generator of its own, and a weighted sampler."""

    def build(self):
        super().build()
        generator = torch.Generator().manual_seed(5)
        sampler = WeightedRandomSampler(torch.arange(1.0, 97), 64, generator=generator)
        self.loader = DataLoader(Augmented(), batch_size=10, sampler=sampler, generator=generator)


class OneCycle(Script):
    """SGD with momentum, a recursive schedule of each step that changes momentum, too, and clipping."""

    def build(self):
        self.loader = DataLoader(TensorDataset(*clouds()), batch_size=16, shuffle=True, drop_last=True)
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.1, total_steps=6 * self.epochs)
        self.also = {"schedule": self.schedule}

    def epoch(self):
        for x, y in self.batches:
            loss = F.cross_entropy(self.model(x), y)
            if not self.ok(loss):
                continue
            self.optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self.schedule.step()


class WarmRestarts(OneCycle):
    """Rates that jump up again and again."""

    def build(self):
        super().build()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(self.optimizer, 9)
        self.also = {"schedule": self.schedule}


class Accumulated(Epochs):
    """Gradients of three batches for one step."""

    def build(self):
        super().build()
        self.loader = DataLoader(Augmented(), batch_size=11, shuffle=True)
        self.settings = {"accumulate": 3, **self.settings}

    def epoch(self):
        for number, (x, y) in enumerate(self.batches):
            loss = F.cross_entropy(self.model(x), y) / 3
            if self.ok(loss):
                loss.backward()
            if number % 3 == 2:
                self.optimizer.step()
                self.optimizer.zero_grad()


class Bfloat16(Epochs):
    """Automatic mixed precision on the CPU."""

    def epoch(self):
        for x, y in self.batches:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = F.cross_entropy(self.model(x), y)
            if self.ok(loss):
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()


class Streamed(Epochs):
    """A stream without a length, read by two workers."""

    def build(self):
        super().build()
        self.loader = DataLoader(Stream(), batch_size=10, num_workers=2)


class Bucketed(Epochs):
    """A batch sampler of one's own, with batches of different sizes."""

    def build(self):
        super().build()
        self.loader = DataLoader(Augmented(), batch_sampler=Buckets(list(range(96))))


class Bins:
    """Batches of similar lengths as speech recipes have them: lists that are shuffled in place, and between epochs."""

    def __init__(self):
        self.bins = [list(range(start, start + 8)) for start in range(0, 96, 8)]

    def __iter__(self):
        for ids in self.bins:
            np.random.shuffle(ids)
            yield ids

    def __len__(self):
        return len(self.bins)

    def shuffle(self):
        np.random.shuffle(self.bins)


class InPlace(Epochs):
    """A sampler that shuffles in place, and a loop that changes its batches in place."""

    def build(self):
        super().build()
        self.bins = Bins()
        self.loader = DataLoader(Augmented(), batch_sampler=self.bins)

    def epoch(self):
        for x, y in self.batches:
            self.order.append(x.sum().item())
            loss = F.cross_entropy(self.model(x.mul_(0.5).sub_(1.0)), y)
            if self.ok(loss):
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
        self.schedule.step()
        self.bins.shuffle()


class Gan(Script):
    """Two networks with an optimizer each, and two losses in a step, which need not fall."""

    def build(self):
        self.loader = DataLoader(clouds()[0], batch_size=16, shuffle=True)
        self.net_g, self.model = nn.Linear(3, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))
        self.opt_g = torch.optim.Adam(self.net_g.parameters(), lr=0.01, betas=(0.5, 0.999))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, betas=(0.5, 0.999))
        self.also = {"netG": self.net_g, "optG": self.opt_g}
        self.settings = {"guard": "finite", **self.settings}

    def parts(self):
        return [*super().parts(), self.net_g, self.opt_g]

    def epoch(self):
        for real in self.batches:
            fake = self.net_g(torch.randn(len(real), 3))
            loss_d = F.softplus(-self.model(real)).mean() + F.softplus(self.model(fake.detach())).mean()
            loss_g = F.softplus(-self.model(fake)).mean()
            if not self.ok(loss_d, loss_g):
                continue
            self.opt_g.zero_grad()
            loss_g.backward(inputs=list(self.net_g.parameters()))
            self.optimizer.zero_grad()
            loss_d.backward()
            self.optimizer.step()
            self.opt_g.step()


class Recurrent(Script):
    """A hidden state that goes from batch to batch, and rates that are set by hand."""

    def build(self):
        text = torch.tensor(np.random.default_rng(0).integers(0, 6, 400))
        self.loader = [text[start : start + 20] for start in range(0, 380, 20)]
        self.model = nn.ModuleList([nn.Embedding(6, 8), nn.GRU(8, 8), nn.Linear(8, 6)])
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.5)
        self.hidden = torch.zeros(1, 8)
        self.also = {"hidden": (lambda: self.hidden, self.load, "heal")}

    def load(self, hidden):
        self.hidden = hidden

    def epoch(self):
        embed, cell, head = self.model
        for tokens in self.batches:
            out, hidden = cell(embed(tokens[:-1]), self.hidden)
            self.hidden = hidden.detach()
            loss = F.cross_entropy(head(out), tokens[1:])
            if self.ok(loss):
                self.model.zero_grad()
                loss.backward()
                self.optimizer.step()
        self.optimizer.param_groups[0]["lr"] *= 0.9


class Iterations(Script):
    """A loop over numbers of iterations, whose batches come from a function of a generator; no epochs."""

    epochs = 0

    def build(self):
        self.loader = None
        self.x, self.y = clouds()
        self.model = Net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.01)
        self.settings = {"num_steps": 60, **self.settings}

    def first(self):
        return self.r8.scheduler.global_step if self.with_r8 else 0

    def run(self):
        for _ in self.r8.steps() if self.with_r8 else range(60):
            self.tick()
            rows = torch.randint(len(self.x), (12,))
            self.order.append(rows.tolist())
            loss = F.cross_entropy(self.model(self.x[rows]), self.y[rows])
            if self.ok(loss):
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                self.optimizer.step()
        if self.with_r8:
            self.r8.close()
        return self


class Closures(Script):
    """LBFGS, which evaluates the loss by itself; it is reported after the step."""

    epochs = 0

    def build(self):
        self.loader = None
        self.x, self.y = clouds()
        self.model = nn.Linear(8, 4)
        self.optimizer = torch.optim.LBFGS(self.model.parameters(), lr=0.1, max_iter=4)
        self.settings = {"num_steps": 40, "guard": "finite", **self.settings}

    def closure(self):
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(self.x), self.y) + 1e-3 * self.model.weight.square().sum()
        loss.backward()
        return loss

    def run(self):
        for _ in self.r8.steps() if self.with_r8 else range(40):
            self.tick()
            self.ok(self.optimizer.step(self.closure))
        if self.with_r8:
            self.r8.close()
        return self


class Averaged(Epochs):
    """Averaged weights beside the model, and the step taken by R8."""

    def build(self):
        super().build()
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.settings = {"ema": self.ema, **self.settings}

    def parts(self):
        return [*super().parts(), self.ema]

    def epoch(self):
        for x, y in self.batches:
            loss = F.cross_entropy(self.model(x), y)
            self.losses.append(loss.item())
            if self.with_r8:
                done = self.r8.step(loss)
            else:
                done = True
                loss.backward()
                self.optimizer.step()
                self.optimizer.zero_grad()
            if done:
                self.ema.update_parameters(self.model)


class Autoencoder(Script):
    """A variational autoencoder whose loss raises on NaN, and is a sum that jumps as a term is switched on."""

    def build(self):
        self.loader = DataLoader(torch.sigmoid(clouds()[0]), batch_size=16, shuffle=True)
        self.model = nn.ModuleList([nn.Linear(8, 4), nn.Linear(2, 8)])
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.passed = 0

    def epoch(self):
        encode, decode = self.model
        for x in self.batches:
            mean, log_var = encode(x).chunk(2, dim=1)
            code = mean + torch.randn_like(mean) * (0.5 * log_var).exp()
            with self.r8.batch() if self.with_r8 else torch.enable_grad():
                error = F.binary_cross_entropy(torch.sigmoid(decode(code)), x, reduction="sum")
                divergence = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum()
                loss = error + (self.passed > 2) * divergence
                if self.ok(loss):
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
        self.passed += 1


class Rewards(Script):
    """A policy gradient, whose loss is no measure of success, one step an episode."""

    epochs = 0

    def build(self):
        self.loader = None
        self.model = nn.Linear(4, 3)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.settings = {"guard": "finite", **self.settings}

    def run(self):
        for _ in range(80):
            self.tick()
            seen = torch.randn(20, 4)
            with self.r8.batch() if self.with_r8 else torch.enable_grad():
                chosen = torch.distributions.Categorical(logits=self.model(seen))
                action = chosen.sample()
                reward = (action == seen.argmax(1) % 3).float()
                loss = -(chosen.log_prob(action) * (reward - reward.mean())).sum()
                if self.ok(loss):
                    self.optimizer.zero_grad()
                    loss.backward()
                    self.optimizer.step()
        if self.with_r8:
            self.r8.close()
        return self


SCRIPTS = [
    Epochs, Workers, OwnGenerator, OneCycle, WarmRestarts, Accumulated, Bfloat16, Streamed, Bucketed, InPlace, Gan,
    Recurrent, Iterations, Closures, Averaged, Autoencoder, Rewards,
]  # fmt: skip
