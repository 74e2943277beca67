"""AccuracyLoss in the place of cross-entropy, in an ordinary training loop."""

import torch

from lossmith import AccuracyLoss

generator = torch.Generator().manual_seed(0)
features = torch.randn(300, 8, generator=generator)
target = (features @ torch.randn(8, 4, generator=generator)).argmax(-1)

for loss_fn in (torch.nn.CrossEntropyLoss(), AccuracyLoss()):
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        loss = loss_fn(model(features), target)
        loss.backward()
        optimizer.step()
    accuracy = (model(features).argmax(-1) == target).double().mean()
    print(f"{type(loss_fn).__name__:18s} loss {loss.item():.3f}  accuracy {accuracy:.3f}")
