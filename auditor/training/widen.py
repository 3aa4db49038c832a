"""A wider copy of a model that nobody wrote for widening.

Layers keep what they are and get ``factor`` times as many outputs; what they get for inputs is
seen when a real batch arrives, so that concatenations, flattened images and skip connections need
no understanding. Inputs and outputs of the whole keep their sizes. Weights are drawn afresh by
each layer's own ``reset_parameters``. Whatever does not fit together makes it give up.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from nnaudit.targets import batch as batches
from nnaudit.targets.layers import NORMS
from nnaudit.targets.model_inputs import ModelInputs

_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
_RECURRENT = (nn.RNNBase,)

_WIDTHS = frozenset(
    {
        "n_embd", "d_model", "embed_dim", "hidden", "hidden_size", "hidden_dim", "dim", "width",
        "channels", "size", "n_hidden", "hidden_features", "num_hiddens", "embedding_dim",
        "head_dim", "d_k", "d_head", "head_size", "split_size", "attention_head_size",
        "all_head_size",
    }
)  # fmt: skip
"""Attributes of users' own modules that name a width, and so have to follow it."""


def widened(model: nn.Module, fed: ModelInputs, factor: int, *, seed: int = 0) -> nn.Module | None:
    """Return a wider copy of ``model`` with fresh weights; None where that does not work out.

    Args:
        fed: a real batch, on the model's device: the copy must give outputs of the same shapes.
        factor: by how much the hidden layers grow.
        seed: of the new weights.
    """
    reference = _run(model, fed)
    if reference is None:
        return None
    output, order = reference
    last = _output_layers(output, order)
    if not last or all(module in last for _, module, _ in order):
        return None
    for adapt in (False, True):  # first as it stands, then with the user's own numbers adapted
        made = _attempt(model, fed, factor, last, order, adapt=adapt, seed=seed)
        if made is not None and _same_shapes(made, fed, output):
            return made
    return None


_Calls = list[tuple[str, nn.Module, Any]]


def _run(model: nn.Module, fed: ModelInputs) -> tuple[Any, _Calls] | None:
    """Run the model; return its output and the layers in order of call, with theirs."""
    order: _Calls = []

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, output: order.append((name, module, output))

    with ExitStack() as stack, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                return None
            if _is_layer(module):
                stack.callback(module.register_forward_hook(hook(name)).remove)
        try:
            output = model(*fed.args, **fed.kwargs)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
            return None
    return output, order


def _is_layer(module: nn.Module) -> bool:
    kinds = (nn.Linear, nn.Embedding, nn.MultiheadAttention, *_CONVOLUTIONS, *_RECURRENT)
    return isinstance(module, kinds)


def _output_layers(output: Any, order: _Calls) -> set[nn.Module]:
    """The layers that make the model's outputs: the last one called, and whose result is one."""
    if not order:
        return set()
    storages = {t.untyped_storage().data_ptr() for _, t in batches.tensors(output)}
    found = {order[-1][1]}
    for _, module, made in order:
        for _, tensor in batches.tensors(made):
            if tensor.untyped_storage().data_ptr() in storages:
                found.add(module)
    return found


def _attempt(
    model: nn.Module,
    fed: ModelInputs,
    factor: int,
    last: set[nn.Module],
    order: _Calls,
    *,
    adapt: bool,
    seed: int,
) -> nn.Module | None:
    keep = {name for name, module, _ in order if module in last}
    unused = {name for name, m in model.named_modules() if _is_layer(m)} - {n for n, *_ in order}
    made = copy.deepcopy(model)
    ties = _ties(model)
    with torch.random.fork_rng(devices=[]), ExitStack() as stack, torch.no_grad():
        torch.manual_seed(seed)
        hidden = set()
        inside = _inside_attention(made)
        for name, module in made.named_modules():
            if name in inside:
                continue
            if _is_layer(module) and name not in keep | unused:
                hidden.add(_outputs(module))
                _grow(module, factor)
        if adapt:
            _adapt(made, hidden, factor)
        for name, module in made.named_modules():
            if name not in inside and (_is_layer(module) or isinstance(module, NORMS)):
                handle = module.register_forward_pre_hook(_fit_inputs)
                stack.callback(handle.remove)
        try:
            made(*fed.args, **fed.kwargs)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
            return None
    _tie(made, ties)
    for parameter in made.parameters():
        parameter.grad = None
    return made


def _inside_attention(model: nn.Module) -> set[str]:
    """Names of modules that belong to an attention layer, which resizes them itself."""
    return {
        f"{name}.{inner}" if name else inner
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for inner, _ in module.named_modules()
        if inner
    }


def _outputs(module: nn.Module) -> int:
    for attribute in ("out_features", "out_channels", "hidden_size", "embedding_dim", "embed_dim"):
        if hasattr(module, attribute):
            return int(getattr(module, attribute))
    return 0


def _grow(module: nn.Module, factor: int) -> None:
    """Give a layer ``factor`` times as many outputs."""
    if isinstance(module, nn.Linear):
        module.out_features *= factor
        _remake(module, (module.out_features, module.in_features), module.out_features)
    elif isinstance(module, _CONVOLUTIONS):
        depthwise = module.groups > 1 and module.groups == module.in_channels
        module.out_channels *= factor
        if depthwise:  # its inputs are as many as its groups, and both grow
            module.in_channels *= factor
            module.groups *= factor
        _remake_convolution(module)
    elif isinstance(module, nn.Embedding):
        module.embedding_dim *= factor
        _remake(module, (module.num_embeddings, module.embedding_dim), 0)
    elif isinstance(module, nn.RNNBase):
        _remake_recurrent(module, module.input_size, module.hidden_size * factor)
    elif isinstance(module, nn.MultiheadAttention):
        _remake_attention(module, module.embed_dim * factor)


def _fit_inputs(module: nn.Module, args: Any) -> None:
    """Give a layer as many inputs as arrive: a forward pre-hook."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return
    x = args[0]
    if isinstance(module, nn.Linear) and module.in_features != x.shape[-1]:
        module.in_features = x.shape[-1]
        _remake(module, (module.out_features, module.in_features), module.out_features)
    elif isinstance(module, _CONVOLUTIONS):
        channels = x.shape[-len(module.kernel_size) - 1]
        if module.in_channels != channels:
            module.in_channels = channels
            _remake_convolution(module)
    elif isinstance(module, nn.RNNBase) and module.input_size != x.shape[-1]:
        _remake_recurrent(module, x.shape[-1], module.hidden_size)
    elif isinstance(module, NORMS):
        _fit_norm(module, x)


def _remake(module: Any, weight: tuple[int, ...], bias: int) -> None:
    old: Tensor = module.weight
    module.weight = nn.Parameter(old.new_empty(weight), requires_grad=old.requires_grad)
    if getattr(module, "bias", None) is not None:
        module.bias = nn.Parameter(old.new_empty(bias), requires_grad=module.bias.requires_grad)
    module.reset_parameters()


def _remake_convolution(module: Any) -> None:
    groups = module.groups
    pair = (module.out_channels, module.in_channels // groups)
    if module.transposed:
        pair = (module.in_channels, module.out_channels // groups)
    _remake(module, (*pair, *module.kernel_size), module.out_channels)


def _remake_recurrent(module: nn.RNNBase, inputs: int, hidden: int) -> None:
    like = module.weight_ih_l0
    kind: Any = type(module)
    arguments: dict[str, Any] = {
        name: getattr(module, name)
        for name in ("num_layers", "bias", "batch_first", "dropout", "bidirectional")
    }
    if isinstance(module, nn.RNN):
        arguments["nonlinearity"] = module.nonlinearity
    # In place: users hold the module itself.
    module.__dict__.update(
        kind(inputs, hidden, **arguments, device=like.device, dtype=like.dtype).__dict__
    )


def _remake_attention(module: nn.MultiheadAttention, size: int) -> None:
    like = module.out_proj.weight
    made = nn.MultiheadAttention(
        size,
        module.num_heads,
        dropout=module.dropout,
        bias=module.in_proj_bias is not None,
        batch_first=module.batch_first,
        device=like.device,
        dtype=like.dtype,
    )
    module.__dict__.update(made.__dict__)


def _fit_norm(module: Any, x: Tensor) -> None:
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        shape = tuple(module.normalized_shape)
        arrived = tuple(x.shape[-len(shape) :])
        if shape == arrived:
            return
        module.normalized_shape = arrived
        features: tuple[int, ...] = arrived
    else:
        channels = x.shape[1]
        name = "num_channels" if isinstance(module, nn.GroupNorm) else "num_features"
        if getattr(module, name) == channels:
            return
        setattr(module, name, channels)
        features = (channels,)
    for part in ("weight", "bias", "running_mean", "running_var"):
        old = getattr(module, part, None)
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(old.new_empty(features), requires_grad=old.requires_grad)
            setattr(module, part, new)
        elif isinstance(old, Tensor):
            setattr(module, part, old.new_zeros(features))
    module.reset_parameters()


def _adapt(model: nn.Module, hidden: set[int], factor: int) -> None:
    """Let numbers and parameters of the user's own modules follow: the width, a position table."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn"):
            continue
        for name, value in vars(module).items():
            if name in _WIDTHS and isinstance(value, int) and not isinstance(value, bool):
                setattr(module, name, value * factor)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim and parameter.shape[-1] in hidden:
                old = parameter.detach()
                deviation = float(old.float().std(correction=0))
                shape = (*old.shape[:-1], old.shape[-1] * factor)
                new = old.new_empty(shape).normal_(float(old.float().mean()), deviation)
                setattr(module, name, nn.Parameter(new, requires_grad=parameter.requires_grad))


def _ties(model: nn.Module) -> list[list[str]]:
    """Names of parameters that are one and the same."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _tie(model: nn.Module, ties: list[list[str]]) -> None:
    for first, *others in ties:
        shared = model.get_parameter(first)
        for other in others:
            path, _, leaf = other.rpartition(".")
            holder = model.get_submodule(path)
            if getattr(holder, leaf).shape == shared.shape:
                setattr(holder, leaf, shared)


def _same_shapes(model: nn.Module, fed: ModelInputs, output: Any) -> bool:
    """Whether the copy stands on its own and gives outputs of the original's shapes."""
    result = _run(model, fed)
    if result is None:
        return False
    shapes = [[(path, t.shape) for path, t in batches.tensors(o)] for o in (result[0], output)]
    return shapes[0] == shapes[1]
