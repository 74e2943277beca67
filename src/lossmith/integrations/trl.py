"""The losses in TRL's ``SFTTrainer``, whose fused last layer makes the log-probabilities by itself."""

from __future__ import annotations

from typing import Any

from lossmith.errors import need
from lossmith.functional import neg_log_q
from lossmith.losses import AccuracyLoss
from lossmith.noise import Gumbel

need("trl", "trl")
from trl import SFTTrainer  # noqa: E402


class MetricSFTTrainer(SFTTrainer):
    r"""``trl.SFTTrainer`` with an ``AccuracyLoss`` under Gumbel noise: −log_q of the softmax's probability, for any q.

    Args:
        args, kwargs: as in ``trl.SFTTrainer``; its ``loss_type`` is "nll", and there is no ``compute_loss_func``.
        metric_loss: ``AccuracyLoss("gumbel", scale=1, q=…)`` without weight, margin, label_smoothing and standardize. q = 1 is
            the trainer's own loss, q = 0 has the gradient of its "dft", and a value that can be read: 1 − mean p. A
            ``LossSchedule`` may move its q.

    Raises:
        TypeError, ValueError: another loss, for which ``SFTTrainer(…, compute_loss_func=TrainerLoss(loss))`` makes all scores
            in a forward pass of its own; a version of TRL whose last layer is not fused.

    Cost: the trainer's own: the scores of a batch are never in memory at once.
    """

    def __init__(self, *args: Any, metric_loss: AccuracyLoss, **kwargs: Any) -> None:
        remedy = "take SFTTrainer(…, compute_loss_func=TrainerLoss(loss)) for others"
        if not isinstance(metric_loss, AccuracyLoss):
            raise TypeError(f"metric_loss: expected AccuracyLoss, got {type(metric_loss).__name__}; {remedy}")
        plain = metric_loss.weight is None and metric_loss.margin is None and not metric_loss.label_smoothing
        if not (plain and metric_loss.is_sample_mean and isinstance(metric_loss.noise, Gumbel) and metric_loss.scale == 1):
            raise ValueError(f"metric_loss: expected Gumbel noise of scale 1 and a plain mean, got {metric_loss!r}; {remedy}")
        super().__init__(*args, **kwargs)
        if self.args.loss_type != "nll" or self.compute_loss_func is not None:
            raise ValueError("loss_type: expected 'nll' and no compute_loss_func, which metric_loss takes the place of")
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor: expected 0, since with it Trainer itself makes the loss; leave it out")
        self.metric_loss = metric_loss

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, its log-probabilities log p replaced by log_q p."""

        def model_of_log_q(**given: Any) -> Any:
            outputs = model(**given)
            if given.get("fused_lm_head"):
                if getattr(outputs, "log_probs", None) is None:
                    raise ValueError("trl: its fused last layer gives no log_probs; take a version from 1.16 on")
                outputs.log_probs = -neg_log_q(outputs.log_probs, self.metric_loss.q)  # 0 where no label counts
            return outputs

        return super().compute_loss(model_of_log_q, inputs, *args, **kwargs)
