"""A step of some 10 ms with a million parameters, timed by the processor time of this process.

It prints the median of blocks of 32 steps, each of which has one sum of the whole state where the probe listens.
"""

import statistics
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

BLOCK = 32

# Threads that wait for a busy processor spin, and that counts.
torch.set_num_threads(1)
torch.manual_seed(0)
data = TensorDataset(torch.randn(128 * 9 * BLOCK, 512), torch.randn(128 * 9 * BLOCK, 512))
model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Dropout(0.1), nn.Linear(1024, 512))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
times = []
for x, y in DataLoader(data, batch_size=128, shuffle=True):
    loss = nn.functional.mse_loss(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    times.append(time.process_time())
# Without the first block, in which each step has sums.
blocks = [1000 * (times[at + BLOCK] - times[at]) / BLOCK for at in range(BLOCK, len(times) - BLOCK, BLOCK)]
print(f"{statistics.median(blocks):.3f}")
