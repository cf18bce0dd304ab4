"""Prodigy without waiting for the device: the learning rate that it finds stays there."""

import math
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor

from .prediction import has_float64


class Prodigy(pytorch_optimizer.Prodigy):
    """The steps of pytorch_optimizer's Prodigy (Mishchenko and Defazio, arXiv:2306.06101).

    Its d, d_max and d_hat in the parameter groups are tensors () on the device, not numbers.
    """

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Moves all parameters that have a gradient."""
        first = self.param_groups[0]
        device = first["params"][0].device
        beta1, beta2 = first["betas"]
        beta3: float = math.sqrt(beta2) if first["beta3"] is None else first["beta3"]
        correction = 1.0
        if first["bias_correction"]:
            correction = (1.0 - beta1 ** first["step"]) / math.sqrt(1.0 - beta2 ** first["step"])
        dtype = torch.float64 if has_float64(device) else torch.float32
        d, d_max = (torch.as_tensor(first[name], dtype=dtype, device=device) for name in ("d", "d_max"))
        rate = d * (first["lr"] / correction)
        numerator = torch.as_tensor(first.get("d_numerator", [0.0]), device=device).mul_(beta3)
        denominator = torch.zeros(1, device=device)

        for group in self.param_groups:
            self.init_group(group)
            group["step"] += 1
            growth = d / first["d0"]
            for each, gradient, state in self._moved(group):
                own_d, own_growth, own_rate = (value.to(each.device) for value in (d, growth, rate))
                agreement = torch.dot(gradient.flatten(), (state["p0"] - each).flatten())
                numerator.add_((agreement * own_growth * own_rate).to(device))
                state["exp_avg"].mul_(beta1).add_(gradient * (own_d * (1.0 - beta1)))
                state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient * (own_d * own_d * (1.0 - beta2)))
                pull = own_growth * (own_d if group["safeguard_warmup"] else own_rate)
                state["s"].mul_(beta3).add_(gradient * pull)
                denominator.add_(state["s"].abs().sum().to(device))

        moves = denominator != 0  # without any gradient so far nothing moves
        found = torch.where(moves, first["d_coef"] * numerator / denominator, d.float()).squeeze().to(dtype)
        d_max = torch.maximum(d_max, found)
        grown = torch.where(d == first["d0"], torch.maximum(d, found), d) * first["growth_rate"]
        d = torch.where(moves.squeeze(), torch.minimum(d_max, grown), d)
        rate = torch.where(moves.squeeze(), rate, 0.0)
        for group in self.param_groups:
            group.update(d_numerator=numerator, d_de_nom=denominator, d=d, d_max=d_max, d_hat=found)
            for each, _, state in self._moved(group):
                own_d, own_rate = d.to(each.device), rate.to(each.device)
                if group["weight_decay"] and group["weight_decouple"]:
                    each.mul_(1.0 - group["weight_decay"] * (1.0 if group["fixed_decay"] else own_rate))
                root = state["exp_avg_sq"].sqrt()
                if group["eps"] is None:
                    update = state["exp_avg"].atan2(root)
                else:
                    update = state["exp_avg"] / root.add_(own_d * group["eps"])
                each.sub_(update.mul_(own_rate))

    def _moved(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """(parameter, gradient, state) of a group's parameters that have a gradient."""
        moved = [each for each in group["params"] if each.grad is not None]
        return [(each, -each.grad if self.maximize else each.grad, self.state[each]) for each in moved]
