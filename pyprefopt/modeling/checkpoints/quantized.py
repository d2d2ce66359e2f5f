"""QLoRA: linear layers stored in 4 bits and computed with as the numbers that these stand for, through bitsandbytes."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pyprefopt.errors import ConfigError
from pyprefopt.modeling.cpu_matmul import linear, product

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# It looks for a kernel on the hub that nothing here calls, as soon as PEFT imports it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logger = logging.getLogger(__name__)

TRAINED_IN_4BIT = "trained_in_4bit"  # in the config.json of a model that was trained so, and of those made of it


def require_bitsandbytes() -> None:
    """ConfigError where the optional package is not installed."""
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "lora.load_in_4bit needs the package bitsandbytes, which is not installed; "
            "run pip install 'pyprefopt[qlora]', or leave load_in_4bit out"
        )


def loading_options(dtype: torch.dtype) -> dict[str, Any]:
    """The options of transformers' `from_pretrained`: NF4 with double quantization (Dettmers et al. 2023, Sec. 3).

    Each linear layer is quantized as it is read. Embeddings, head, norms and biases stay as they are.
    """
    require_bitsandbytes()
    from transformers import BitsAndBytesConfig

    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"load_in_4bit needs dtype float32 or bfloat16, got {dtype}")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": nf4, "device_map": {"": "cpu"}}


def take_over(model: PreTrainedModel) -> None:
    """Let a model loaded so compute through `QuantizedLinear`; to all others it is then an ordinary model.

    Raises:
        ConfigError: nothing was quantized, or layers that hold their weight transposed (Conv1D).
    """
    from bitsandbytes.nn import Linear4bit

    layers = [module for module in model.modules() if isinstance(module, Linear4bit)]
    _check_kinds(model, {layer.source_cls.__name__ for layer in layers})
    for layer in layers:
        layer.__class__ = QuantizedLinear
    for name in ("hf_quantizer", "is_loaded_in_4bit", "is_quantized", "quantization_method"):
        vars(model).pop(name, None)
    vars(model.config).pop("quantization_config", None)
    packed = sum(layer.in_features * layer.out_features for layer in layers)
    others = sum(p.numel() for p in model.parameters() if p.dtype.is_floating_point)
    share = 100 * packed / (packed + others)
    logger.info("load_in_4bit: %d linear layers, %.0f %% of the weights, are stored as NF4", len(layers), share)


def check_packable(model: PreTrainedModel) -> None:
    """ConfigError for a model, not yet packed, of which `take_over` would refuse the layers."""
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    layers = [m for m in model.modules() if (type(m) is nn.Linear and m is not head) or isinstance(m, Conv1D)]
    _check_kinds(model, {type(layer).__name__ for layer in layers})


def _check_kinds(model: PreTrainedModel, kinds: set[str]) -> None:
    if kinds != {"Linear"}:
        raise ConfigError(
            f"load_in_4bit needs a model of plain linear layers, got {type(model).__name__}, whose layers are "
            f"{', '.join(sorted(kinds)) or 'of other kinds'}; leave load_in_4bit out"
        )


class QuantizedLinear(nn.Linear):
    """x W' + b with a frozen W of 4 bits a number: whole for the time of a product, forward and again backward.

    bitsandbytes' own layer computes otherwise without a gradient than with one, and on some CPUs then stores its
    weight anew, so that scored, trained and saved models would differ. This one always multiplies with `dense()`.
    `weight` holds the packed numbers with their scales beside them (`weight.quant_state`), which a state dict leaves
    out: they come from the checkpoint that the model was loaded from, as the packed numbers do.
    """

    def dense(self) -> Tensor:
        """W, [N, K], in the dtype that it was loaded in."""
        from bitsandbytes.functional import dequantize_4bit

        packed: Any = self.weight
        whole: Tensor = dequantize_4bit(packed, packed.quant_state)
        return whole

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (nn.Linear's name)
        """x W' + b."""
        rows: Tensor = _QuantizedLinear.apply(input.reshape(-1, input.shape[-1]), self, self.bias)
        return rows.view(*input.shape[:-1], -1)


class _QuantizedLinear(torch.autograd.Function):
    """[M, K] -> [M, N], no view, with a gradient of the input alone."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: QuantizedLinear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return linear(inputs, layer.dense(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        """dx = g W."""
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return product(grad, ctx.layer.dense()), None, None


def stored_bytes(parameter: Tensor) -> int:
    """Bytes of a weight, with the scales of one that is packed."""
    state = getattr(parameter, "quant_state", None)
    scales = [] if state is None else [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(part.numel() * part.element_size() for part in (parameter, *scales))


def dense_weights(model: nn.Module, state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """`state_dict` with every quantized weight of `model` in full, where the packed one is."""
    layers = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    return state_dict | {name: layer.dense().to(state_dict[name].device) for name, layer in layers.items()}
