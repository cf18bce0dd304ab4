"""Base models in GGUF files: the files are written and read with `gguf`, and loaded as custom nodes load them.

Such a loader gives tensors of a class of its own. They hold packed bytes, and say what they stand for: the format, the
shape of the weight, and patches that the loader's layers add each time they unpack it. A copy of such a tensor is the
tensor itself. Numbers that are not packed (F32, F16) come in the same class.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Format
from torch import nn

import models

SHAPE_KEY = "comfy.gguf.orig_shape."
"""Start of the keys under which a file notes the shape of a tensor whose rows were cut anew to fit the format."""
FLOATS = (Format.F32, Format.F16)


# ---------------------------------------------------------------- files


def write(path: Path, weights: Mapping[str, torch.Tensor], kind: str, whole: str = " ") -> None:
    """Writes weights: matrices and kernels in `kind`, as far as their size allows, else F16; all others F32.

    Args:
        whole: those with this in their names are F16 too.
    """
    writer = gguf.GGUFWriter(str(path), "test")
    for name, weight in weights.items():
        values = weight.float().numpy()
        block, _ = gguf.GGML_QUANT_SIZES[Format[kind]]
        if values.ndim < 2:
            writer.add_tensor(name, values)
        elif values.size % block or whole in name:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            if values.shape[-1] % block:
                writer.add_array(SHAPE_KEY + name, list(values.shape))
                values = values.reshape(-1, block)
            writer.add_tensor(name, _packed(values, Format[kind]), raw_dtype=Format[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, as the loader's class."""
    reader = gguf.GGUFReader(path)
    tensors = {tensor.name: _tensor(reader, tensor) for tensor in reader.tensors}
    max(filter(is_packed, tensors.values()), key=lambda tensor: tensor.numel()).is_largest_weight = True
    return tensors


def _tensor(reader: gguf.GGUFReader, tensor: Any) -> PackedTensor:
    noted = reader.get_field(SHAPE_KEY + tensor.name)
    shape = [int(n) for n in reversed(tensor.shape)] if noted is None else noted.contents()
    data = torch.from_numpy(tensor.data.copy())
    if tensor.tensor_type in FLOATS:
        data = data.view(tuple(shape))
    return PackedTensor(data, tensor.tensor_type, torch.Size(shape))


def _packed(values: np.ndarray, kind: Format) -> np.ndarray:
    """The bytes of rows. The package cannot compute K-quants: these get random bytes and scales of the right size."""
    if kind not in (Format.Q4_K, Format.Q6_K):
        return gguf.quants.quantize(values, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    packed = np.random.default_rng(values.size).integers(0, 256, (values.size // block, size), dtype=np.uint8)
    scales = slice(0, 4) if kind == Format.Q4_K else slice(-2, None)
    for scale in (1.0, None):  # once to learn how large the numbers are with a scale of 1
        scale = scale or values.std() / gguf.quants.dequantize(packed, kind).std()
        halves = np.full(2, scale, np.float16).view(np.uint8)
        packed[:, scales] = halves[: packed[:, scales].shape[1]]
    return packed.reshape(values.shape[0], -1)


# ---------------------------------------------------------------- the loader's tensors and layers


class PackedTensor(torch.Tensor):
    """A weight as it lies in the file."""

    tensor_type: Format
    tensor_shape: torch.Size
    patches: list[Any]

    def __new__(cls, data: torch.Tensor, tensor_type: Format, tensor_shape: torch.Size, patches: Any = ()) -> Any:
        new = data.as_subclass(cls)
        new.tensor_type, new.tensor_shape, new.patches = tensor_type, tensor_shape, list(patches)
        return new

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    @property
    def shape(self) -> torch.Size:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self, "tensor_shape", self.size())

    def to(self, *args: Any, **kwargs: Any) -> Any:
        new = super().to(*args, **kwargs)
        for name in ("tensor_type", "tensor_shape"):
            if hasattr(self, name):
                setattr(new, name, getattr(self, name))
        new.patches = list(getattr(self, "patches", ()))
        return new

    def clone(self, *_: Any, **__: Any) -> Any:
        return self

    def detach(self) -> Any:
        return self


def is_packed(tensor: Any) -> bool:
    return getattr(tensor, "tensor_type", Format.F32) not in FLOATS


def unpacked(tensor: Any, dtype: torch.dtype) -> torch.Tensor:
    """The numbers of a tensor of the loader's, without its patches."""
    with torch._C.DisableTorchFunctionSubclass():
        raw = tensor.as_subclass(torch.Tensor)
    if not is_packed(tensor):
        return raw.to(dtype)
    numbers = gguf.quants.dequantize(raw.cpu().numpy(), tensor.tensor_type)
    return torch.from_numpy(numbers).reshape(tensor.tensor_shape).to(raw.device, dtype)


class Unpacking(nn.Module):
    """A layer that unpacks its weight each time it is used."""

    weight: Any
    bias: Any

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        own = {name: state_dict.get(prefix + name) for name in ("weight", "bias")}
        if not isinstance(self, nn.Linear) and not any(map(is_packed, own.values())):
            return super()._load_from_state_dict(state_dict, prefix, *args)
        for name, tensor in own.items():
            setattr(self, name, None if tensor is None else nn.Parameter(tensor, requires_grad=False))

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self.has_packed():
            return super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in ("weight", "bias"):
            if getattr(self, name) is not None:
                destination[prefix + name] = torch.zeros_like(getattr(self, name), device="meta")
        if hasattr(self.weight, "is_largest_weight"):  # what unpacking needs, for the host's estimate of memory
            destination[f"{prefix}temp.weight"] = torch.empty(self.weight.shape, device="meta")

    def has_packed(self) -> bool:
        return is_packed(self.weight) or is_packed(self.bias)

    def cast_bias_weight(
        self, input: Any = None, dtype: Any = None, device: Any = None, bias_dtype: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(weight, bias) with the patches on them, in the number format of the input."""
        dtype = dtype or (torch.float32 if input is None else input.dtype)
        device = device or (self.weight.device if input is None else input.device)
        bias = None if self.bias is None else self._with_patches(self.bias.to(device), bias_dtype or dtype)
        return self._with_patches(self.weight.to(device), dtype), bias

    def _with_patches(self, tensor: Any, dtype: torch.dtype) -> torch.Tensor:
        numbers = unpacked(tensor, dtype)
        for patches, key in getattr(tensor, "patches", ()):
            numbers = comfy.lora.calculate_weight(patches, numbers, key)
        return numbers

    def forward_comfy_cast_weights(self, input: Any, *args: Any, **kwargs: Any) -> Any:
        if self.has_packed():
            return self.forward_unpacked(input, *args, **kwargs)
        output = super().forward_comfy_cast_weights(input, *args, **kwargs)  # pyright: ignore
        return torch.Tensor(output) if isinstance(output, PackedTensor) else output

    def forward_unpacked(self, input: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        raise NotImplementedError


class Ops(comfy.ops.manual_cast):
    """The host's layers, with weights that may be packed."""

    class Linear(Unpacking, comfy.ops.manual_cast.Linear):
        def __init__(self, in_features: int, out_features: int, *_: Any, **__: Any) -> None:
            nn.Module.__init__(self)
            self.in_features, self.out_features, self.weight, self.bias = in_features, out_features, None, None

        def forward_unpacked(self, input: Any) -> torch.Tensor:
            return nn.functional.linear(input, *self.cast_bias_weight(input))

    class Conv2d(Unpacking, comfy.ops.manual_cast.Conv2d):
        def forward_unpacked(self, input: Any) -> torch.Tensor:
            return self._conv_forward(input, *self.cast_bias_weight(input))

    class Embedding(Unpacking, comfy.ops.manual_cast.Embedding):
        def forward_unpacked(self, input: Any, out_dtype: Any = None) -> torch.Tensor:
            return nn.functional.embedding(input, self.cast_bias_weight(dtype=out_dtype, device=input.device)[0])


class Patcher(comfy.model_patcher.ModelPatcher):
    """Puts the patches of packed weights on the weights, which clones of a MODEL share, and takes them off when it is
    unloaded; those of other weights are added as ever."""

    def patch_weight_to_device(self, key: str, *args: Any, **kwargs: Any) -> Any:
        weight = comfy.utils.get_attr(self.model, key)
        if not is_packed(weight):
            return super().patch_weight_to_device(key, *args, **kwargs)
        if key in self.patches:
            new = weight.to(args[0] if args else kwargs.get("device_to"))
            new.patches = [(self.patches[key], key)]
            comfy.utils.set_attr_param(self.model, key, new)

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> Any:
        for parameter in self.model.parameters() if unpatch_weights else ():
            if is_packed(parameter):
                parameter.patches = []
        return super().unpatch_model(device_to, unpatch_weights)

    def load(self, *args: Any, force_patch_weights: bool = False, **kwargs: Any) -> Any:
        return super().load(*args, force_patch_weights=True, **kwargs)

    def clone(self, *args: Any, **kwargs: Any) -> Any:
        own_class, self.__class__ = self.__class__, Patcher
        try:
            return super().clone(*args, **kwargs)
        finally:
            self.__class__ = own_class


# ---------------------------------------------------------------- a MODEL


def loaded(model: Any, folder: Path, kind: str, whole: str = " ") -> Any:
    """A MODEL of `models` as a GGUF file of it gives it.

    Args:
        folder: for the file.
        kind: of its matrices and kernels, e.g. Q8_0.
        whole: see `write`.
    """
    path = folder / f"{kind}.gguf"
    write(path, model.model.diffusion_model.state_dict(), kind, whole)
    with torch.inference_mode():  # as nodes run
        base = _empty(model, Ops())
        base.load_model_weights(read(path), "")
    return Patcher.clone(comfy.model_patcher.ModelPatcher(base, model.load_device, model.offload_device))


def loaded_clip(small: models.Small, folder: Path, kind: str, **options: Any) -> Any:
    """A CLIP of `models` as a GGUF file of its text encoders gives it.

    Args:
        options: with which `models` makes the CLIP.
    """
    path = folder / f"clip-{kind}.gguf"
    write(path, small.clip.cond_stage_model.state_dict(), kind, whole="position_embedding")
    target = small.model.model.model_config.clip_target({})
    with torch.inference_mode():
        clip = comfy.sd.CLIP(target, model_options={**options, "dtype": torch.float32, "custom_operations": Ops})
        clip.cond_stage_model.load_state_dict(read(path))
    clip.patcher = Patcher.clone(clip.patcher)
    return clip


def plain(model: Any) -> Any:
    """The MODEL with ordinary weights that have the values of a GGUF MODEL's, without patches."""
    with torch.inference_mode():
        base = _empty(model)
        base.diffusion_model.load_state_dict(unpacked_weights(model.model.diffusion_model))
    return comfy.model_patcher.ModelPatcher(base, model.load_device, model.offload_device)


def _empty(model: Any, operations: Any = None) -> Any:
    """A `BaseModel` like a MODEL's, without its weights."""
    config = type(model.model.model_config)(model.model.model_config.unet_config)
    config.set_inference_dtype(torch.float32, None)
    config.custom_operations = operations
    return config.get_model({}, "", device="cpu")


def unpacked_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's parameters and buffers, unpacked, without patches."""
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers())
    return {name: unpacked(tensor, torch.float32) for name, tensor in tensors}
