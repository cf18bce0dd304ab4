"""Loss scaling: what keeps the gradients of fp16 from rounding to zero."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

FIRST, LEAST, MOST = 2.0**16, 1.0, 2.0**24
PATIENCE = 2000
"""Steps that must go well before the loss is scaled up."""


class LossScale:
    """What the loss is multiplied by and its gradients are divided by (Micikevicius et al., arXiv:1710.03740, 3.2).

    fp16 holds no number below 6e-8, and gradients are often smaller. A step whose scaled gradients are larger than
    fp16 holds moves nothing and halves the scale. All of it lies on the device, and nothing waits for it.
    """

    def __init__(self, device: torch.device):
        self.value = torch.tensor(FIRST, device=device)
        self.went_well = torch.zeros((), device=device)
        """steps, since the scale last changed"""

    @property
    def state(self) -> list[Tensor]:
        """What a checkpoint keeps."""
        return [self.value, self.went_well]

    @torch.no_grad()
    def unscale(self, parameters: Iterable[nn.Parameter]) -> None:
        """Divides the gradients by the scale."""
        inverse = 1.0 / self.value
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(inverse.to(parameter.grad.device))

    def settle(self, loss: Tensor, norm: Tensor) -> Tensor:
        """Whether the step must not move: () 1 or 0; the scale is that of the next step then.

        Args:
            loss: (), without the scale.
            norm: (), of the gradients. Where it is no number and the loss is one, only the scale was too large, as
                long as there is a smaller one.
        """
        goes_well = norm.isfinite()
        is_too_large = ~goes_well & loss.isfinite() & (self.value > LEAST)
        self.went_well.copy_((self.went_well + 1) * goes_well)
        is_up = self.went_well >= PATIENCE
        self.value.mul_(1.0 + is_up.float()).mul_(1.0 - 0.5 * is_too_large.float()).clamp_(LEAST, MOST)
        self.went_well.mul_(1.0 - is_up.float())
        return is_too_large.float()
