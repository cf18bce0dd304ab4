"""Triton kernels for the layers between matrix products; each reads and writes memory once or twice.

They are for frozen layers: the backward pass gives the gradient of the input alone. Sums are float32, in a fixed order.
"""

from .cross_attention import cross_attention, try_cross_attention
from .e4m3 import from_e4m3, rows_to_e4m3, transposed
from .geglu import geglu
from .gelu import gelu
from .group_norm import group_norm
from .rotary import rotate
from .row_norms import layer_norm, rms_norm

__all__ = [
    "cross_attention",
    "from_e4m3",
    "geglu",
    "gelu",
    "group_norm",
    "layer_norm",
    "rms_norm",
    "rotate",
    "rows_to_e4m3",
    "transposed",
    "try_cross_attention",
]
