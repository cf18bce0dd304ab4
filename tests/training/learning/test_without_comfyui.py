"""The core alone: adapters on a net of two layers learn in a process that cannot import ComfyUI."""

from __future__ import annotations

import subprocess
import sys

from host import PACK

SCRIPT = """
import importlib.abc, importlib.util, sys
from functools import partial
from pathlib import Path

COMFYUI = {"comfy", "comfy_api", "comfy_extras", "comfy_execution", "folder_paths", "server", "nodes", "execution"}


class Refused(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in COMFYUI:
            raise ImportError(f"{name} must not be imported here")
        return None


sys.meta_path.insert(0, Refused())
pack = Path(sys.argv[1])
spec = importlib.util.spec_from_file_location("kiln", pack / "__init__.py", submodule_search_locations=[str(pack)])
sys.modules["kiln"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["kiln"])

import torch
from torch import nn
from kiln.training.adapters.attach import Target, attached, make_adapters
from kiln.training.adapters.flat import FlatParameters
from kiln.training.config import AdapterConfig, ObjectiveConfig, OptimizationConfig
from kiln.training.learning.batches import Example, make_batch
from kiln.training.learning.engine import EagerEngine
from kiln.training.learning.family import Family
from kiln.training.learning.loop import train
from kiln.training.learning.objective import batch_loss
from kiln.training.learning.optimizers import make_optimizer
from kiln.training.learning.prediction import Eps
from kiln.training.learning.step import Step

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)).requires_grad_(False)
targets = [Target(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
adapters = make_adapters(targets, AdapterConfig(rank=4), seed=0)
flat = FlatParameters(adapters.values(), torch.device("cpu"), torch.float32)
optimization = OptimizationConfig(learning_rate=3e-3, steps=60, batch_size=4, scheduler="constant")
optimizer = make_optimizer(optimization, [{"params": [flat.values], "learning_rate": optimization.learning_rate}])
family = Family(Eps(torch.linspace(0.5, 2.0, 100)))
latent = torch.randn(1, 4, 4)


def predict(x_t, sigma, cond):
    return net(x_t.flatten(1)).reshape(x_t.shape)


def batch_at(step, micro):
    return make_batch([Example(latent)] * optimization.batch_size, family, ObjectiveConfig(), (0, step, micro))


loss_of = partial(batch_loss, predict, family.prediction, ObjectiveConfig())
step = Step(loss_of, optimizer, optimization, flats=[flat])
losses = []
with attached(targets, adapters) as forwards:
    assert all(forward.is_plain for forward in forwards.values())
    train(EagerEngine(step), batch_at, optimization, optimization.steps, lambda step, loss, rate: losses.append(loss))
assert len(losses) == optimization.steps
assert sum(losses[-10:]) < 0.5 * sum(losses[:10]), losses
assert not COMFYUI & {name.split(".")[0] for name in sys.modules}, "ComfyUI was imported"
print("learned")
"""


def test_a_net_learns_in_a_process_without_comfyui() -> None:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", SCRIPT, str(PACK)], capture_output=True, text=True, timeout=300, check=False
    )
    assert ran.returncode == 0 and ran.stdout.strip() == "learned", ran.stderr
