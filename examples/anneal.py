"""EXACT's recipe by hand: the accuracy itself (q = 0), standardised scores, a falling scale, normalised gradients."""

import torch

from lossmith import AccuracyLoss
from lossmith.training import GradientNormalizer, ScaleSchedule

STEPS = 120
generator = torch.Generator().manual_seed(0)
features = torch.randn(300, 8, generator=generator)
target = (features @ torch.randn(8, 4, generator=generator)).argmax(-1)
noisy = torch.rand(300, generator=generator) < 0.2
target[noisy] = torch.randint(4, (int(noisy.sum()),), generator=generator)

torch.manual_seed(0)
model = torch.nn.Linear(8, 4)
loss_fn = AccuracyLoss(noise="normal", q=0, margin=5.0, standardize=True)
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
schedule = ScaleSchedule(loss_fn, start=10.0, end=0.01, steps=STEPS)
normalizer = GradientNormalizer(model.parameters())

for step in range(STEPS):
    optimizer.zero_grad()
    loss = loss_fn(model(features), target)
    loss.backward()
    normalizer.step()
    optimizer.step()
    if step % 20 == 0 or step == STEPS - 1:
        accuracy = (model(features).argmax(-1) == target).double().mean()
        print(f"step {step:3d}  scale {loss_fn.scale:7.3f}  1 - loss {1 - loss.item():.3f}  accuracy {accuracy:.3f}")
    schedule.step()
