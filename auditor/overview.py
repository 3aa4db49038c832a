"""The pictures: what the network is fed, and what it is made of. They answer no question."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit import batch as batches
from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Fed, Loop, Needs
from nnaudit.report import Evidence, Histogram, Image, Images, Overview, Section, Table, Text

TILES = 24
ROWS = 8
COLUMNS = 12
LAYERS = 24
"""How much is shown: picture tiles, rows and columns of a table, layers with a histogram."""

BINS = 32


def overview_of(loop: Loop) -> Overview:
    """Picture the first training batch as it enters the network, and the weights by layer."""
    sections = []
    if not loop.lacks(Needs.TRAIN_LOADER):
        sections.append(_data_section(loop))
    sections.append(_weights_section(loop.model))
    return Overview(sections=tuple(sections))


def _data_section(loop: Loop) -> Section:
    title = "The first training batch, as it enters the network"
    try:
        batch = next(iter(loop.batches()))
        fed = loop.called_with(batch)
    except (UserCodeError, StopIteration) as error:
        return Section(title=title, text=f"No batch could be read: {error}")
    pictures = tuple(_inputs_pictured(fed))
    return Section(
        title=title,
        text=f"{batches.size(batch)} examples; {_described(fed)}.",
        evidence=(_statistics(fed), *pictures),
    )


def _described(fed: Fed) -> str:
    inputs = ", ".join(f"{tuple(t.shape)} {_dtype(t)}" for _, t in batches.tensors(fed.inputs))
    targets = ", ".join(f"{tuple(t.shape)} {_dtype(t)}" for _, t in batches.tensors(fed.target))
    return f"input {inputs or 'none'}; target {targets or 'none'}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _statistics(fed: Fed) -> Table:
    """Minimum, maximum, mean and sd of every tensor: the numbers to look at before any picture."""
    rows = []
    for role, part in (("input", fed.inputs), ("target", fed.target)):
        for path, tensor in batches.tensors(part):
            values = _real(tensor)
            if values.numel():
                rows.append(
                    (
                        f"{role}{path}",
                        f"{tuple(tensor.shape)}",
                        float(values.min()),
                        float(values.max()),
                        float(values.mean()),
                        float(values.std(correction=0)),
                    )
                )
    return Table(
        title="What is in it",
        columns=("tensor", "shape", "min", "max", "mean", "sd"),
        rows=tuple(rows),
    )


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return (tensor.abs() if tensor.is_complex() else tensor).float().cpu()


def _inputs_pictured(fed: Fed) -> Iterator[Evidence]:
    captions = _captions(fed.target)
    for path, tensor in batches.tensors(fed.inputs):
        if _is_image(tensor):
            yield _as_images(tensor, captions, f"Input{path} as pictures")
        elif tensor.ndim == 2 and tensor.is_floating_point():
            yield _as_table(tensor, captions, f"Input{path} as a table")
        elif tensor.ndim == 2:
            yield _as_ids(tensor, captions, f"Input{path} as ids")
        elif tensor.ndim == 3 and tensor.is_floating_point():
            yield _as_images(
                tensor.unsqueeze(1), captions, f"Input{path} as pictures, a row a step"
            )


def _is_image(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and min(tensor.shape[2:]) > 1 and tensor.dtype != torch.long


def _captions(target: Any) -> list[str]:
    """A short label per row: the class, the number, or nothing."""
    leaf = next((t for _, t in batches.tensors(target)), None)
    if leaf is None or leaf.ndim == 0 or leaf.numel() != leaf.shape[0]:
        return []
    return [
        f"{value:g}" if isinstance(value, float) else str(value)
        for value in leaf.reshape(-1).tolist()
    ]


def _as_images(tensor: Tensor, captions: list[str], title: str) -> Images:
    values = _real(tensor[:TILES])
    channels = 3 if values.shape[1] == 3 else 1
    tiles = values[:, :channels]
    # One scale for all tiles: a picture that is darker than the others must look it.
    low, high = float(tiles.min()), float(tiles.max())
    scaled = ((tiles - low) / (high - low if high > low else 1.0) * 255).round().byte()
    return Images(
        title=f"{title} ({low:.3g} is black, {high:.3g} is white)",
        images=tuple(
            Image(png=_png(tile.numpy()), caption=captions[i] if i < len(captions) else "")
            for i, tile in enumerate(scaled)
        ),
    )


def _png(tile: np.ndarray) -> str:
    """Encode (C, H, W) bytes, C 1 or 3, as a PNG in base64; large pictures are thinned out."""
    from PIL import Image as Pillow

    step = max(1, max(tile.shape[1:]) // 128)
    pixels = np.moveaxis(tile[:, ::step, ::step], 0, -1)
    picture = Pillow.fromarray(
        np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    )
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _as_table(tensor: Tensor, captions: list[str], title: str) -> Table:
    values = _real(tensor[:ROWS, :COLUMNS])
    names = tuple(f"[{i}]" for i in range(values.shape[1]))
    labelled = bool(captions)
    return Table(
        title=title,
        columns=(*names, "target") if labelled else names,
        rows=tuple(
            (*row, captions[i]) if labelled else tuple(row) for i, row in enumerate(values.tolist())
        ),
    )


def _as_ids(tensor: Tensor, captions: list[str], title: str) -> Text:
    lines = [
        f"{' '.join(str(v) for v in row[:64])}{' ...' if len(row) > 64 else ''}"
        f"{f'  -> {captions[i]}' if i < len(captions) else ''}"
        for i, row in enumerate(tensor[:ROWS].tolist())
    ]
    return Text(title=title, text="\n".join(lines))


def _weights_section(model: nn.Module) -> Section:
    named = [(n, p) for n, p in model.named_parameters() if not is_lazy(p) and p.numel() > 1]
    shown = named[:LAYERS]
    more = f" The first {LAYERS} of {len(named)} are shown." if len(named) > LAYERS else ""
    total = sum(p.numel() for _, p in model.named_parameters() if not is_lazy(p))
    return Section(
        title="Weights and biases before training",
        text=f"{total:,} parameters in {len(named)} tensors.{more}",
        evidence=tuple(_histogram(name, parameter) for name, parameter in shown),
    )


def _histogram(name: str, parameter: Tensor) -> Histogram:
    values = _real(parameter).reshape(-1).numpy()
    values = values[np.isfinite(values)]
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    counts, edges = np.histogram(values, bins=BINS, range=(low, high))
    return Histogram(
        title=f"{name} {tuple(parameter.shape)}",
        x_label="value",
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
    )
