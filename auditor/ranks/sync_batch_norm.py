"""SyncBatchNorm where there is no GPU: torch's own refuses tensors of the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from nnaudit.loop.trace import patched
from nnaudit.targets.callstack import Role, registered

_REFUSAL = "_passing_sync_batchnorm_handle"
"""What of DistributedDataParallel refuses such a network on the CPU, and does nothing else."""


@contextmanager
def sync_batch_norm_without_gpu() -> Iterator[None]:
    """Let SyncBatchNorm take tensors of the CPU for the time of a ``with``.

    The script of a cluster that converts its network is audited on a machine without a GPU. What is
    computed is the same: the statistics are those of the rows of all ranks, forward and backward.
    """

    def standing_in(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @wraps(real)
        @registered(Role.STANDS_IN)
        def forward(module: nn.SyncBatchNorm, input: Tensor) -> Tensor:
            needed = module.training and distributed.is_initialized() and not input.is_cuda
            return _normalized(module, input) if needed else real(module, input)

        return forward

    def accepting(real: Callable[..., None]) -> Callable[..., None]:
        return lambda wrapper, network: None

    if torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(patched(nn.SyncBatchNorm, "forward", standing_in))
        if hasattr(DistributedDataParallel, _REFUSAL):
            stack.enter_context(patched(DistributedDataParallel, _REFUSAL, accepting))
        yield


def _normalized(module: nn.SyncBatchNorm, values: Tensor) -> Tensor:
    """Normalise ``values`` (rows, channels, ...) by the statistics of the rows of all ranks."""
    axes = [axis for axis in range(values.ndim) if axis != 1]
    count = values.new_tensor([values.numel() / values.shape[1]], dtype=torch.float32)
    wide = values.float()
    shape = [1, -1, *[1] * (values.ndim - 2)]
    first: Tensor = _Summed.apply(torch.cat([wide.sum(axes), count]), module.process_group)
    mean, total = first[:-1] / first[-1], float(first[-1])
    centred = wide - mean.view(shape)
    variance: Tensor = _Summed.apply(centred.pow(2).sum(axes), module.process_group) / total
    _track(module, mean.detach(), variance.detach(), total)
    scaled = centred * (variance + module.eps).rsqrt().view(shape)
    if module.affine:
        scaled = scaled * module.weight.view(shape) + module.bias.view(shape)
    return scaled.to(values.dtype)


def _track(module: nn.SyncBatchNorm, mean: Tensor, variance: Tensor, total: float) -> None:
    """Update the running statistics, as torch does: of an unbiased variance."""
    if module.running_mean is None or module.running_var is None:
        return
    assert module.num_batches_tracked is not None
    module.num_batches_tracked.add_(1)
    weight = module.momentum
    if weight is None:
        weight = 1.0 / float(module.num_batches_tracked)
    module.running_mean.lerp_(mean.to(module.running_mean.dtype), weight)
    unbiased = variance * total / max(total - 1.0, 1.0)
    module.running_var.lerp_(unbiased.to(module.running_var.dtype), weight)


class _Summed(torch.autograd.Function):
    """The sum over all ranks, whose gradient is the sum over all ranks too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        summed = values.clone()
        distributed.all_reduce(summed, group=group)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        summed = gradients[0].contiguous().clone()
        distributed.all_reduce(summed, group=ctx.group)
        return summed, None
