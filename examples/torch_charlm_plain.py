"""A small transformer on the characters of Shakespeare with PyTorch alone; ``diff`` it with torch_charlm.py.

python torch_charlm_plain.py [--data FOLDER] [--steps 1000]
"""

import torch
from charlm_parts import CharLM, Windows, arguments, load, mean_loss
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

BATCH_SIZE, LR = 32, 2e-3

options = arguments()
torch.manual_seed(0)
text, letters = load(options.data)
split = int(0.9 * len(text))
data, test = Windows(text[:split]), Windows(text[split:])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

model = CharLM(letters).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
loader = DataLoader(data, batch_size=BATCH_SIZE, shuffle=True)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=options.steps)

step = 0
while step < options.steps:
    for x, y in loader:
        loss = cross_entropy(model(x.to(device)), y.to(device))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        step += 1
        if step == options.steps:
            break

print(f"loss on the rest of the text: {mean_loss(model, test, device):.2f}")
