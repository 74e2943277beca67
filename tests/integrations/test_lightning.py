"""The losses' dials under Lightning's Trainer."""

from typing import Any

import pytest
import torch

lightning = pytest.importorskip("lightning.pytorch")

from lossmith import AccuracyLoss  # noqa: E402
from lossmith.integrations.lightning import LossSchedule  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's, about loggers and workers


class Module(lightning.LightningModule):
    def __init__(self, loss: AccuracyLoss) -> None:
        super().__init__()
        self.layer, self.loss = torch.nn.Linear(3, 4), loss
        self.seen: list[tuple[int, float, float]] = []

    def training_step(self, batch: Any, number: int) -> torch.Tensor:
        self.seen.append((self.global_step, self.loss.q, float(self.loss.scale)))
        return self.loss(self.layer(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def trained(tmp_path: Any, steps: int | None = None, resume: bool = False, **options: Any) -> list[tuple[int, float, float]]:
    loss = AccuracyLoss()
    rows = torch.utils.data.TensorDataset(torch.randn(8, 3), torch.randint(4, (8,)))
    trainer = lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[
            LossSchedule(loss, q=(1.0, 0.0), scale=(2.0, 1.0), steps=steps),
            lightning.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_epochs=1),
        ],
        **options,
    )
    module = Module(loss)
    trainer.fit(module, torch.utils.data.DataLoader(rows, 2), ckpt_path=tmp_path / "step=2.ckpt" if resume else None)
    return module.seen


def test_dials_move_with_the_optimisers_steps_and_go_on_after_a_checkpoint(tmp_path: Any) -> None:
    options = {"max_epochs": 3, "accumulate_grad_batches": 2}  # 2 steps an epoch
    whole = trained(tmp_path, **options)
    assert [step for step, *_ in whole] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert [q for _, q, _ in whole[::2]] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])
    assert [scale for *_, scale in whole[::2]] == pytest.approx([2.0, 1.8, 1.6, 1.4, 1.2, 1.0])
    assert trained(tmp_path, resume=True, **options) == whole[4:]


def test_steps_of_ones_own(tmp_path: Any) -> None:
    assert [q for _, q, _ in trained(tmp_path, steps=3, max_epochs=1)] == [1.0, 0.5, 0.0, 0.0]


def test_a_training_without_an_end_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"^steps: expected a training with an end, got inf; pass max_epochs, or steps=…$"):
        trained(tmp_path, max_epochs=-1)
    with pytest.raises(ValueError, match=r"^q, scale: expected"):
        LossSchedule(AccuracyLoss())
