"""Keepers of the process and of the calling thread: random numbers, modes, flags, environment."""

from __future__ import annotations

import logging
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nnaudit.state.objects import keep_list, keep_torch_generator
from nnaudit.state.parts import Undo


def _switch(read: Callable[[], Any], write: Callable[[Any], object]) -> Undo:
    """Write the present value back, if it changed: some setters have side effects."""
    saved = read()

    def undo() -> None:
        if read() != saved:
            write(saved)

    return undo


def _all(undos: Iterable[Undo]) -> Undo:
    todo = list(undos)

    def undo() -> None:
        for each in todo:
            each()

    return undo


def keep_python_rng() -> Undo:
    """The module ``random``."""
    return partial(random.setstate, random.getstate())


def keep_numpy_rng() -> Undo:
    """NumPy's legacy global generator."""
    return partial(np.random.set_state, np.random.get_state(legacy=False))


def keep_torch_rng() -> Undo:
    """PyTorch's generator of the CPU."""
    return partial(torch.set_rng_state, torch.get_rng_state())


def keep_accelerator_rng() -> Undo:
    """The generators of each CUDA and XPU device, without waking them."""
    return _all(_keep_device_rng(module) for module in (torch.cuda, torch.xpu))


def _keep_device_rng(module: Any) -> Undo:
    if module.is_initialized():
        return _all(map(keep_torch_generator, module.default_generators))

    def undo() -> None:
        # Woken up by the audit: seed it as waking up after the restore would have.
        if module.is_initialized():
            for generator in module.default_generators:
                generator.manual_seed(torch.initial_seed())

    return undo


def keep_mps_rng() -> Undo:
    """The generator of Apple's GPU."""
    if not torch.backends.mps.is_available():
        return _all(())
    return partial(torch.mps.set_rng_state, torch.mps.get_rng_state())


def keep_cuda_device() -> Undo:
    """The current CUDA device."""
    cuda: Any = torch.cuda
    if not cuda.is_initialized():
        return _all(())
    return _switch(cuda.current_device, cuda.set_device)


def keep_grad_mode() -> Undo:
    """``no_grad`` left on."""
    return _switch(torch.is_grad_enabled, torch._C._set_grad_enabled)


def keep_anomaly_mode() -> Undo:
    """``torch.autograd.set_detect_anomaly``."""
    return _switch(
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda saved: torch.set_anomaly_enabled(*saved),
    )


def keep_autocast() -> Undo:
    """Autocasting per kind of device, and its cache."""
    return _all((*map(_keep_autocast, ("cpu", "cuda")), _keep_autocast_cache()))


def _keep_autocast(device: str) -> Undo:
    return _all(
        (
            _switch(
                lambda: torch.is_autocast_enabled(device),
                lambda saved: torch.set_autocast_enabled(device, saved),
            ),
            _switch(
                lambda: torch.get_autocast_dtype(device),
                lambda saved: torch.set_autocast_dtype(device, saved),
            ),
        )
    )


def _keep_autocast_cache() -> Undo:
    return _switch(torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled)


def keep_default_dtype() -> Undo:
    """``torch.set_default_dtype``."""
    return _switch(torch.get_default_dtype, torch.set_default_dtype)


def keep_default_device() -> Undo:
    """``torch.set_default_device``; not a ``with torch.device(...)`` that is being left anyway."""

    place: Any = torch._GLOBAL_DEVICE_CONTEXT

    def read() -> Any:
        context = getattr(place, "device_context", None)
        return None if context is None else context.device

    def write(saved: Any) -> None:
        torch.set_default_device(saved)
        if saved is None:  # PyTorch 2.8 would fail to read the None that it stored itself
            del place.device_context

    return _switch(read, write)


def keep_determinism() -> Undo:
    """``use_deterministic_algorithms``, its ``warn_only``, and the filling of new memory."""
    return _all(
        (
            _switch(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
            _flag(torch.utils.deterministic, "fill_uninitialized_memory"),
        )
    )


def keep_cudnn() -> Undo:
    """cuDNN's switches; TF32 is in :func:`keep_float32_precision`."""
    names = ("enabled", "benchmark", "benchmark_limit", "deterministic")
    return _all(_flag(torch.backends.cudnn, name) for name in names)


def keep_cublas() -> Undo:
    """Which reductions cuBLAS may do in half precision."""
    names = (
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
    return _all(_flag(torch.backends.cuda.matmul, name) for name in names)


def _flag(owner: Any, name: str) -> Undo:
    return _switch(lambda: getattr(owner, name), lambda saved: setattr(owner, name, saved))


def keep_attention() -> Undo:
    """Which implementations of attention may be chosen."""
    cuda: Any = torch.backends.cuda
    return _all(
        (
            _switch(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
            _switch(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
            _switch(cuda.math_sdp_enabled, cuda.enable_math_sdp),
            _switch(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
        )
    )


def keep_float32_precision() -> Undo:
    """TF32 and its kin, through the old interface and, since PyTorch 2.9, the new one.

    The two write to common settings and the old one refuses to be read once they disagree, so
    the old is put back first and the new one corrects it. Both are silenced: they warn of each
    other. A parent ("all") comes before its children, which inherit from it when unset.
    """
    old = (
        (torch._C._get_float32_matmul_precision, torch._C._set_float32_matmul_precision),
        (torch._C._get_cublas_allow_tf32, torch._C._set_cublas_allow_tf32),
        (torch._C._get_cudnn_allow_tf32, torch._C._set_cudnn_allow_tf32),
    )
    undos = [_switch(partial(_readable, read), partial(_unless_none, write)) for read, write in old]
    if hasattr(torch._C, "_get_fp32_precision_getter"):
        new = [("generic", "all")]
        new += [(b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn")]
        undos += [_keep_new_precision(*pair) for pair in new]
    undo = _all(undos)

    def quietly() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            undo()

    return quietly


def _keep_new_precision(backend: str, operation: str) -> Undo:
    c: Any = torch._C
    return _switch(
        lambda: c._get_fp32_precision_getter(backend, operation),
        lambda saved: c._set_fp32_precision_setter(backend, operation, saved),
    )


def _readable(read: Callable[[], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return read()
    except RuntimeError:  # the program used the new interface
        return None


def _unless_none(write: Callable[[Any], object], value: Any) -> None:
    if value is not None:
        write(value)


def keep_threads() -> Undo:
    """``torch.set_num_threads``, on which the order of a sum depends."""
    return _switch(torch.get_num_threads, torch.set_num_threads)


def keep_numpy_errors() -> Undo:
    """``numpy.seterr`` and ``numpy.seterrcall``."""
    return _all(
        (_switch(np.geterr, lambda s: np.seterr(**s)), _switch(np.geterrcall, np.seterrcall))
    )


def keep_warning_filters() -> Undo:
    """``warnings.filters``: the list, which ``catch_warnings`` swaps, and its contents."""
    filters, saved = warnings.filters, list(warnings.filters)

    def undo() -> None:
        if warnings.filters is not filters or filters != saved:
            warnings.filters = filters
            warnings.resetwarnings()  # also tells the C code that its cache is stale
            list.extend(filters, saved)  # type: ignore[arg-type]

    return undo


def keep_environment() -> Undo:
    """``os.environ``, and with it the environment that C code sees."""
    saved = dict(os.environ)

    def undo() -> None:
        for name in os.environ.keys() - saved.keys():
            del os.environ[name]
        os.environ.update({k: v for k, v in saved.items() if os.environ.get(k) != v})

    return undo


def keep_directory() -> Undo:
    """The working directory, unless it was deleted already."""
    try:
        return partial(os.chdir, Path.cwd())
    except FileNotFoundError:
        return _all(())


def keep_import_path() -> Undo:
    """``sys.path``, the list and its contents."""
    return _all((partial(setattr, sys, "path", sys.path), keep_list(sys.path)))


def keep_logging() -> Undo:
    """The root logger's level and handlers, and ``logging.disable``."""
    root = logging.getLogger()
    return _all(
        (
            _switch(lambda: root.level, root.setLevel),
            _switch(lambda: root.manager.disable, logging.disable),
            keep_list(root.handlers),
        )
    )


PROCESS: tuple[Callable[[], Undo], ...] = (
    keep_python_rng,
    keep_numpy_rng,
    keep_torch_rng,
    keep_accelerator_rng,
    keep_mps_rng,
    keep_cuda_device,
    keep_grad_mode,
    keep_anomaly_mode,
    keep_autocast,
    keep_default_dtype,
    keep_default_device,
    keep_determinism,
    keep_cudnn,
    keep_cublas,
    keep_attention,
    keep_float32_precision,
    keep_threads,
    keep_numpy_errors,
    keep_warning_filters,
    keep_environment,
    keep_directory,
    keep_import_path,
    keep_logging,
)
