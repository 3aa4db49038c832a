"""The figures "Look at your data": the network's inputs, weights and predictions, unjudged."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop, Needs
from nnaudit.overview.dynamics import Followed, charts, follow, predictions
from nnaudit.overview.gallery import as_text, decoder, is_picture, stages
from nnaudit.report import (
    Curve,
    Evidence,
    Histogram,
    Image,
    Images,
    Overview,
    Section,
    Series,
    Table,
    Text,
)
from nnaudit.targets import batch as batches
from nnaudit.targets.model_inputs import ModelInputs

TILES = 24
ROWS = 8
COLUMNS = 12
LAYERS = 24
"""How much is shown: picture tiles, rows and columns of a table, layers with a histogram."""

BINS = 32
FILTERS = 16
HEAT_ROWS, HEAT_COLUMNS = 32, 48
"""Filters of the first layer; rows and columns of a heat map."""

LEAST_FILTER = 5
"""Rows and columns of the least filter that is drawn: nine values are no picture."""

SEEN = 0.2
"""The change of filters, by their size, from which on a second picture differs from the first."""


def overview_of(loop: Loop, *, train: bool = True) -> Overview:
    """Picture what the network is fed, and its layers, before and after a few steps.

    ``train`` allows these steps; the caller preserves the state.
    """
    sections = []
    shape: tuple[int, ...] = ()
    if not loop.lacks(Needs.TRAIN_LOADER):
        data, shape = _data_section(loop)
        sections.append(data)
        sections += _stages_section(loop) if shape else ()
    drawn = _first_filters(loop.model, shape)
    weights = _weights_section(loop.model)
    followed = follow(loop) if train else None
    if followed is None or not followed.steps:
        return Overview(sections=(*sections, *_filters_section(drawn, None, 0), weights))
    now = _first_filters(loop.model, shape)
    return Overview(
        sections=(
            *sections,
            *_predictions_section(followed),
            *_filters_section(drawn, now, followed.steps),
            Section(
                title=f"Layers before and after {followed.steps} steps",
                text=weights.text.partition(".")[0]
                + f". Distributions of {len(followed.before.weights)} layers, from the first to "
                "the last.",
                evidence=charts(followed),
            ),
        )
    )


def _stages_section(loop: Loop) -> tuple[Section, ...]:
    found = stages(loop)
    if len(found) < 2:
        return ()
    return (
        Section(
            title="The same examples at each stage of preprocessing",
            evidence=tuple(
                _as_images(pictures, [], f"{name[0].upper()}{name[1:]}")
                for name, pictures in found.items()
            ),
        ),
    )


def _predictions_section(followed: Followed) -> tuple[Section, ...]:
    curve = predictions(followed)
    if curve is None:
        return ()
    text = "Each line is a row of the first batch, in eval mode, while the network trains."
    return (Section(title="Predictions on a fixed batch", text=text, evidence=(curve,)),)


def _first_filters(model: nn.Module, shape: tuple[int, ...]) -> Tensor | None:
    """Return the first layer's weights as pictures (N, C, H, W); None where they are none.

    ``shape`` is that of a row of the input, where these are pictures.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and min(module.kernel_size) >= LEAST_FILTER:
            return module.weight.detach()[:FILTERS].clone() if not is_lazy(module.weight) else None
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            flat = isinstance(module, nn.Linear) and not is_lazy(module.weight)
            fits = flat and len(shape) == 3 and module.weight.shape[1] == np.prod(shape)
            return module.weight.detach()[:FILTERS].reshape(-1, *shape).clone() if fits else None
    return None


def _filters_section(before: Tensor | None, after: Tensor | None, steps: int) -> list[Section]:
    """Show the filters, twice only where the steps changed them so that one can see it."""
    if before is None:
        return []
    pictures, text = {"Before training": before}, "Trained ones show edges, blobs and strokes."
    if after is not None:
        moved = float((after - before).norm() / before.norm().clamp_min(1e-30))
        if moved >= SEEN:
            pictures[f"After {steps} steps"] = after
        text += f" {steps} steps changed these by {moved:.0%} of their size."
    return [
        Section(
            title="The first layer's filters",
            text=text,
            evidence=tuple(
                _as_images(_enlarged(tiles), [], name) for name, tiles in pictures.items()
            ),
        )
    ]


def _enlarged(tiles: Tensor) -> Tensor:
    """Return ``tiles`` with every value enlarged to a square."""
    return _squared(tiles.float(), max(1, 40 // max(tiles.shape[2:])))


def _data_section(loop: Loop) -> tuple[Section, tuple[int, ...]]:
    """Return the section, and the shape of a row of the input where that is a picture."""
    title = "The first training batch, as it enters the network"
    try:
        batch = next(iter(loop.batches()))
        fed = loop.called_with(batch)
    except (UserCodeError, StopIteration) as error:
        return Section(title=title, text=f"No batch could be read: {error}"), ()
    section = Section(
        title=title,
        text=f"{batches.size(batch)} examples; {_described(fed)}.",
        evidence=(_statistics(fed), *_inputs_pictured(loop, fed)),
    )
    first = next((tensor for _, tensor in batches.tensors(fed.inputs)), None)
    pictured = first is not None and is_picture(first)
    return section, tuple(first.shape[1:]) if first is not None and pictured else ()


def _described(fed: ModelInputs) -> str:
    inputs = ", ".join(f"{tuple(t.shape)} {_dtype(t)}" for _, t in batches.tensors(fed.inputs))
    targets = ", ".join(f"{tuple(t.shape)} {_dtype(t)}" for _, t in batches.tensors(fed.target))
    return f"input {inputs or 'none'}; target {targets or 'none'}"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _statistics(fed: ModelInputs) -> Table:
    """Minimum, maximum, mean and standard deviation of every tensor."""
    rows = []
    for role, part in (*fed.named_inputs(), ("target", fed.target)):
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
        title="Tensors of the batch",
        columns=("tensor", "shape", "min", "max", "mean", "std"),
        rows=tuple(rows),
    )


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return (tensor.abs() if tensor.is_complex() else tensor).float().cpu()


def _inputs_pictured(loop: Loop, fed: ModelInputs) -> Iterator[Evidence]:
    labels = _captions(fed.target)
    named = (
        (f"{role}{path}", tensor)
        for role, part in fed.named_inputs()
        for path, tensor in batches.tensors(part)
    )
    for name, tensor in named:
        # A bag of rows with one label is no row with a label.
        captions = labels if tensor.ndim and len(labels) == len(tensor) else []
        if is_picture(tensor):
            yield _as_images(tensor, captions, f"{name} as images")
        elif tensor.ndim == 2 and tensor.is_floating_point():
            yield _as_table(tensor, captions, f"{name} as a table")
            if min(tensor.shape) > 3:
                yield _as_heat_map(tensor, f"{name} as a heat map")
        elif tensor.ndim == 2:
            yield _as_ids(tensor, captions, f"{name} as ids", decoder(loop, tensor))
        elif tensor.ndim == 3 and tensor.is_floating_point():
            yield _as_series(tensor, captions, f"{name} as time series")
            yield _as_images(tensor.unsqueeze(1), captions, f"{name} as images, one row per step")


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


def _as_heat_map(tensor: Tensor, title: str) -> Images:
    """Rows down, columns across, each column standardised, so that outliers show."""
    values = _real(tensor[:HEAT_ROWS, :HEAT_COLUMNS])
    values = (values - values.mean(0)) / values.std(0, correction=0).clamp_min(1e-12)
    cells = values.nan_to_num(0.0).clamp(-3, 3)[None, None]
    return _as_images(_squared(cells, 8), [""], f"{title}, columns standardised")


def _squared(tiles: Tensor, factor: int) -> Tensor:
    return tiles.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def _as_series(tensor: Tensor, captions: list[str], title: str) -> Curve:
    values = _real(tensor[:, :256])
    # The column that varies most: the first one of a picture is often its margin.
    column = int(values.std(1).mean(0).nan_to_num(0.0).argmax()) if values.shape[1] > 1 else 0
    rows = values[:4, :, column]
    steps = tuple(float(i) for i in range(rows.shape[1]))
    return Curve(
        title=f"{title}, column {column}",
        x_label="step",
        y_label="value",
        series=tuple(
            Series(
                name=f"row {i}{f', target {captions[i]}' if i < len(captions) else ''}",
                x=steps,
                y=tuple(round(v, 6) for v in row),
            )
            for i, row in enumerate(rows.tolist())
        ),
    )


def _as_ids(
    tensor: Tensor,
    captions: list[str],
    title: str,
    decode: Callable[[Sequence[int]], str] | None,
) -> Text:
    if decode is not None:
        title = title.replace("as ids", "as text, decoded by the program's own vocabulary")
    lines = [
        (as_text(decode, row) if decode is not None else _id_line(row))
        + (f"  -> {captions[i]}" if i < len(captions) else "")
        for i, row in enumerate(tensor[:ROWS].tolist())
    ]
    return Text(title=title, text="\n".join(lines))


def _id_line(row: list[int]) -> str:
    return f"{' '.join(str(v) for v in row[:64])}{' ...' if len(row) > 64 else ''}"


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
