"""Triton kernels for what a network does between its matrix products; every one reads and writes memory once or twice.

For frozen layers: the gradient is that of the input alone. Sums are float32 and in a fixed order.
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
