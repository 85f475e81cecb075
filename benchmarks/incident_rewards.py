"""Small tasks for `incidents.py` whose loss need not fall: a pole to balance, and values with a target network.

The loss of REINFORCE says nothing of progress, that of the actor-critic rises as episodes become longer, and that of
Q-learning jumps whenever the target is set. "Samples" are episodes, which the task plays itself, but for Q-learning.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from incident_networks import stack

LONGEST = 200


def push(state: list[float], action: int) -> list[float]:
    """One step of the pole on a cart (Barto, Sutton, Anderson 1983), 20 ms."""
    place, speed, angle, turn = state
    force, sine, cosine = (10.0 if action else -10.0), math.sin(angle), math.cos(angle)
    pull = (force + 0.05 * turn * turn * sine) / 1.1
    turning = (9.8 * sine - cosine * pull) / (0.5 * (4 / 3 - 0.1 * cosine * cosine / 1.1))
    moving = pull - 0.05 * turning * cosine / 1.1
    return [place + 0.02 * speed, speed + 0.02 * moving, angle + 0.02 * turn, turn + 0.02 * turning]


class Pole:
    """A linear policy, and with ``critic`` a linear value of a state and its squares; Adam.

    Attributes:
        lengths: Of all episodes played; the score is the mean of the last 50.
    """

    is_sum, change, change_at, now, num_samples = False, "", 0, 0, 1

    def __init__(self, critic: bool, seed: int) -> None:
        self._rng, self._critic = np.random.default_rng([seed, 29]), critic
        self.weights = [np.zeros(4), np.zeros(9)]
        self.moments = [np.zeros(4), np.zeros(9), np.zeros(4), np.zeros(9)]
        self.steps = np.zeros(1)
        self.lengths: list[int] = []
        self.rate = 0.03

    def _play(self) -> tuple[Any, Any]:
        """States and actions of an episode."""
        state: list[float] = self._rng.uniform(-0.05, 0.05, 4).tolist()
        draws, weights = self._rng.random(LONGEST).tolist(), self.weights[0].tolist()
        states, actions = [], []
        for draw in draws:
            logit = sum(w * s for w, s in zip(weights, state, strict=True))
            action = int(draw < 1 / (1 + math.exp(-min(max(logit, -500.0), 500.0))))
            states.append(state)
            actions.append(action)
            state = push(state, action)
            if abs(state[0]) > 2.4 or abs(state[2]) > 0.2095:
                break
        self.lengths.append(len(states))
        return np.array(states), np.array(actions)

    def losses(self, indices: Any) -> Any:
        """float64[1], the loss of an episode played now."""
        states, actions = self._play()
        returns = (1 - 0.99 ** np.arange(len(states), 0, -1)) / 0.01
        p = 1 / (1 + np.exp(-np.clip(states @ self.weights[0], -500, 500)))
        log_p = np.log(np.maximum(np.where(actions == 1, p, 1 - p), 1e-12))
        features = np.concatenate([states, states**2, np.ones((len(states), 1))], axis=1)
        if self._critic:
            error = returns - features @ self.weights[1]
            advantage, value_loss = error, np.where(abs(error) < 1, error**2 / 2, abs(error) - 0.5).sum()
            value_gradient = -features.T @ np.clip(error, -1, 1)
        else:
            advantage, value_loss = (returns - returns.mean()) / (returns.std() + 1e-9), 0.0
            value_gradient = np.zeros(9)
        self._gradients = [-states.T @ ((actions - p) * advantage), value_gradient]
        return np.array([-(log_p * advantage).sum() + value_loss])

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of Adam."""
        self.steps = self.steps + 1
        t = float(self.steps[0])
        for place, gradient in enumerate(self._gradients):
            first = self.moments[place] = 0.9 * self.moments[place] + 0.1 * gradient * scale
            second = self.moments[place + 2] = 0.999 * self.moments[place + 2] + 0.001 * (gradient * scale) ** 2
            slope = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
            self.weights[place] = self.weights[place] - lr * slope

    def score(self) -> float:
        """Mean length of the last 50 episodes, of at most 200."""
        return float(np.mean(self.lengths[-50:]))

    def loss(self) -> float:
        """The same, negative."""
        return -self.score()

    def state(self) -> dict[str, Any]:
        """All but the random generator, as in scripts of this kind."""
        return {"weights": self.weights, "moments": self.moments, "steps": self.steps}

    def load(self, source: Any, from_ram: bool = True) -> None:
        """Put back what `state` returned."""
        self.weights, self.moments, self.steps = source["weights"], source["moments"], source["steps"]


class Values:
    """Q-learning from stored steps, with a target network that is set every 50 steps: values rise from 0 to 33."""

    is_sum, change, change_at, now, num_samples, rate = False, "", 0, 0, 2000, 1e-3

    def __init__(self, seed: int) -> None:
        torch.manual_seed(1000 + seed)
        rng = np.random.default_rng([seed, 17])
        self.x = torch.tensor(rng.normal(0, 1, (2000, 6)), dtype=torch.float32)
        self.then, self.reward = self.x + 0.1 * torch.randn_like(self.x), (self.x[:, 0] > 0).float()
        self.net, self.action = stack(6, 32, 4), torch.tensor(rng.integers(0, 4, 2000))
        self.target = copy.deepcopy(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), self.rate)

    def losses(self, indices: Any) -> Any:
        """float64[B], squared errors of values."""
        rows = torch.as_tensor(indices)
        if self.now % 50 == 0:
            self.target.load_state_dict(self.net.state_dict())
        with torch.no_grad():
            goal = self.reward[rows] + 0.97 * self.target(self.then[rows]).max(1)[0]
        losses = F.mse_loss(self.net(self.x[rows])[torch.arange(len(rows)), self.action[rows]], goal, reduction="none")
        self._reduced = losses.mean()
        return losses.detach().double().numpy()

    def step(self, lr: float, scale: float = 1.0) -> None:
        """One step of Adam."""
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.zero_grad()
        (self._reduced * scale).backward()
        self.optimizer.step()

    def score(self) -> float:
        """Mean value of the best action."""
        with torch.no_grad():
            return float(self.net(self.x).max(1)[0].mean())

    def loss(self) -> float:
        """The same, negative."""
        return -self.score()

    def state(self) -> dict[str, Any]:
        """Both networks and the optimizer."""
        parts = {"net": self.net, "target": self.target, "optimizer": self.optimizer}
        return {name: part.state_dict() for name, part in parts.items()}

    def load(self, source: Any, from_ram: bool = True) -> None:
        """Put back what `state` returned."""
        self.net.load_state_dict(source["net"])
        self.target.load_state_dict(source["target"])
        self.optimizer.load_state_dict(source["optimizer"])
