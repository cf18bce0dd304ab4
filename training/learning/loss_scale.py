"""Loss scaling, which prevents small gradients in fp16 from rounding to zero."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FIRST, LEAST, MOST = 2.0**10, 1.0, 2.0**24
"""FIRST is far below what most models bear: a step that overflows is lost, a scale too small costs little."""
PATIENCE = 2000
"""Steps with finite gradients after which the scale is doubled."""


class LossScale:
    """A factor on the loss, by which its gradients are divided again (Micikevicius et al., arXiv:1710.03740, 3.2).

    fp16 has no number below 6e-8, and gradients are often smaller. A step whose scaled gradients overflow updates
    nothing and halves the scale. All state lies on the device, and nothing waits for it.
    """

    def __init__(self, device: torch.device):
        self.value = torch.tensor(FIRST, device=device)
        self.went_well = torch.zeros((), device=device)
        """steps with finite gradients since the scale last changed"""
        self.skipped = torch.zeros((), device=device)
        """steps that updated nothing, since this object was made"""

    @property
    def state(self) -> list[Tensor]:
        """The tensors of a checkpoint."""
        return [self.value, self.went_well]

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale."""
        inverse = 1.0 / self.value
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(inverse.to(parameter.grad.device))

    def update(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Sets the scale of the next step, and tells whether this step must be skipped: () 1 or 0.

        Args:
            loss: (), unscaled.
            norm: (), of the gradients. If it is not finite and the loss is, the scale was too large, unless it is
                already the least.
        """
        goes_well = norm.isfinite()
        is_too_large = ~goes_well & loss.isfinite() & (self.value > LEAST)
        self.went_well.copy_((self.went_well + 1) * goes_well)
        is_up = self.went_well >= PATIENCE
        self.value.mul_(1.0 + is_up.float()).mul_(1.0 - 0.5 * is_too_large.float()).clamp_(LEAST, MOST)
        self.went_well.mul_(1.0 - is_up.float())
        self.skipped.add_(is_too_large)
        return is_too_large.float()
