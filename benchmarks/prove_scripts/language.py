"""A small language model: batches cut from a text by index, accumulation, a gradient scaler, dropout, an average.

It goes on from ``ck.pt``, also between two parts of a batch. ``FAULT`` in the environment plants what is wrong.
"""

import os

import torch
from torch import nn

FAULT = os.environ.get("FAULT", "")
PARTS, MICRO, LENGTH, BATCH, EVERY = 4, 112, 16, 4, 10

torch.manual_seed(0)
text = torch.randint(0, 32, (4000,))
text[1::2] = (text[::2] + 1) % 32


class Model(nn.Module):
    """One layer of attention."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(32, 24)
        self.layer = nn.TransformerEncoderLayer(24, 2, 48, dropout=0.1, batch_first=True)
        self.head = nn.Linear(24, 32)

    def forward(self, tokens):
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])
        return self.head(self.layer(self.embedding(tokens), src_mask=mask, is_causal=True))


model = Model()
average = {name: each.detach().clone() for name, each in model.named_parameters()}
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 8) / (1 + 0.05 * step))
scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5)
micro = resumes = 0


def positions(number):
    """Where the sequences of a part begin: keyed by its number."""
    return torch.randint(0, len(text) - LENGTH - 1, (BATCH,), generator=torch.Generator().manual_seed(number))


path = "ck.pt"
if FAULT == "older" and os.path.exists("ck-0020.pt"):
    # The last two are there for safety; it takes the first of them.
    path = sorted(name for name in os.listdir() if name.startswith("ck-"))[-2:][0]
if os.path.exists(path):
    saved = torch.load(path)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    resumes = saved["resumes"] + 1
    if FAULT != "schedule":
        schedule.load_state_dict(saved["schedule"])
    if FAULT != "scaler":
        scaler.load_state_dict(saved["scaler"])
    if FAULT != "ema":
        average = saved["average"]
    if FAULT != "accumulation":
        for parameter, gradient in zip(model.parameters(), saved["gradients"], strict=True):
            parameter.grad = gradient
    micro = saved["micro"]
    if FAULT == "second" and resumes > 1:
        optimizer.state.clear()
    if FAULT != "dropout":
        torch.set_rng_state(saved["rng"])

ahead = 3 if FAULT == "repeated" and resumes else 0
while micro < MICRO:
    begins = positions(micro - ahead)
    tokens = torch.stack([text[each : each + LENGTH + 1] for each in begins.tolist()])
    logits = model(tokens[:, :-1])
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    scaler.scale(loss / PARTS).backward()
    micro += 1
    if micro % PARTS == 0:
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
        optimizer.zero_grad()
        with torch.no_grad():
            for name, each in model.named_parameters():
                average[name].mul_(0.9).add_(each, alpha=0.1)
    if micro % EVERY == 0:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        state |= {"scaler": scaler.state_dict(), "average": average, "micro": micro, "resumes": resumes}
        state |= {"gradients": [each.grad for each in model.parameters()], "rng": torch.get_rng_state()}
        torch.save(state, "ck.tmp")
        if FAULT == "older":
            torch.save(state, f"ck-{micro:04d}.pt")
        os.replace("ck.tmp", "ck.pt")
print("finished", micro, loss.item())
