"""torch_charlm_plain.py under R8Scheduler: a budget in steps, and a loss for every piece of the text.

python torch_charlm.py [--data FOLDER] [--steps 1000]
"""

import torch
from charlm_parts import CharLM, Windows, arguments, load, mean_loss
from torch.nn.functional import cross_entropy

from learnit_r8.torch import attach

BATCH_SIZE, LR = 32, 2e-3

options = arguments()
torch.manual_seed(0)
text, letters = load(options.data)
split = int(0.9 * len(text))
data, test = Windows(text[:split]), Windows(text[split:])
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

model = CharLM(letters).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
adapter = attach(model, optimizer, data, batch_size=BATCH_SIZE, num_steps=options.steps, max_grad_norm=1.0)

for _ in adapter.epochs():
    for x, y in adapter.loader():
        adapter.step(adapter.loss(cross_entropy(model(x.to(device)), y.to(device), reduction="none")))

print(f"loss on the rest of the text: {mean_loss(model, test, device):.2f}")
