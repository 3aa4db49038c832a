"""Examples on their way into the network: as stored, as augmented, at the first layer."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnaudit.errors import UserCodeError
from nnaudit.loop.base import Loop
from nnaudit.measure.random_access import RandomAccess
from nnaudit.measure.seeding import source_files
from nnaudit.targets import batch as batches
from nnaudit.training.evaluation import evaluate, fed_to

EXAMPLES = 8
"""How many examples are followed."""

_TRANSFORMS = ("transform", "transforms", "augment", "augmentation")
_VOCABULARY = re.compile(
    r"tok|vocab|itos|stoi|i2|2i|id2|2id|idx|index_to|to_index|word|char|alphabet|symbol",
    re.IGNORECASE,
)
"""Names under which programs keep what their ids stand for."""

_TEXT = 96
"""Characters of a decoded row."""


def stages(loop: Loop) -> dict[str, Tensor]:
    """Return the same few images (N, C, H, W), or one by one where sizes differ, by stage.

    Only the stages that differ from the one before; empty where there is nothing to compare.
    """
    access = RandomAccess.of(loop.train_loader)
    if access is None:
        return {}
    try:
        chosen = access.spread(EXAMPLES)
        one, two = (access.fetch(chosen) for _ in range(2))
        pictures = [_first_pictures(loop.split_batch(batch).inputs) for batch in (one, two)]
        fed, at_first_layer = _at_the_first_layer(loop, one)
    except (UserCodeError, TypeError, IndexError, KeyError):
        return {}
    first, second = pictures
    if first is None or second is None:
        return {}
    found: dict[str, Tensor] = {}
    stored = _stored(access.loader.dataset, chosen)
    if stored is not None and not _same(stored, first):
        found["as stored"] = stored
    if not _same(first, second):
        found["as loaded"] = first
        found["loaded again: what differs is random augmentation"] = second
    elif found:
        found["as loaded"] = first
    if at_first_layer is not None and not _same(at_first_layer, fed):
        found.setdefault("as loaded", first)
        found["at the first layer"] = at_first_layer
    return found


def _first_pictures(inputs: Any) -> Tensor | None:
    for _, tensor in batches.tensors(inputs):
        return tensor.detach().float().cpu() if is_picture(tensor) else None
    return None


def is_picture(tensor: Tensor) -> bool:
    """Whether ``tensor`` (N, C, H, W) can be shown as pictures."""
    return tensor.ndim == 4 and min(tensor.shape[2:]) > 1 and tensor.dtype != torch.long


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-6, equal_nan=True)


def _stored(dataset: Any, chosen: Sequence[Any]) -> Tensor | None:
    """Return the pictures that ``dataset`` holds for ``chosen``, its transforms left out."""
    with _without_transforms(dataset) as some:
        if not some:
            return None
        try:
            pictures = [_as_picture(dataset[index]) for index in chosen]
        except Exception:
            return None  # the user's code relies on what its transforms make
    shapes = {picture.shape if picture is not None else None for picture in pictures}
    if None in shapes or len(shapes) != 1:
        return None
    return torch.stack([picture for picture in pictures if picture is not None])


@contextmanager
def _without_transforms(dataset: Any) -> Iterator[bool]:
    """Remove the transforms of ``dataset`` and of what it wraps; yields whether there were some."""
    with ExitStack() as stack:
        some = False
        while dataset is not None:
            for name in _TRANSFORMS:
                made = getattr(dataset, name, None)
                if callable(made) and name in getattr(dataset, "__dict__", {}):
                    setattr(dataset, name, _unchanged)
                    stack.callback(setattr, dataset, name, made)
                    some = True
            dataset = getattr(dataset, "dataset", None)
        yield some


def _unchanged(*values: Any) -> Any:
    return values[0] if len(values) == 1 else values


def _as_picture(item: Any) -> Tensor | None:
    """Return the picture in an item of a data set as (C, H, W); None where there is none."""
    first = item[0] if isinstance(item, (tuple, list)) else item
    if isinstance(first, Mapping):
        first = next(iter(first.values()), None)
    if first is not None and not isinstance(first, (Tensor, np.ndarray)) and hasattr(first, "size"):
        first = np.asarray(first)  # a picture of Pillow's
    if not isinstance(first, (Tensor, np.ndarray)) or first.ndim not in (2, 3):
        return None
    tensor = torch.as_tensor(np.array(first)).float()
    if tensor.ndim == 2:
        return tensor.unsqueeze(0)
    return tensor.movedim(2, 0) if tensor.shape[2] in (1, 3, 4) else tensor


def _at_the_first_layer(loop: Loop, batch: Any) -> tuple[Tensor, Tensor | None]:
    """Return the pictures that the model is given, and what its first layer is given of them."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any) -> None:
        if args and isinstance(args[0], Tensor) and is_picture(args[0]):
            seen.append(args[0].detach().float().cpu())

    fed = fed_to(loop, batch)
    given = _first_pictures(fed.inputs)
    with ExitStack() as stack:
        for module in loop.model.modules():
            if not list(module.children()) and next(module.parameters(), None) is not None:
                stack.callback(module.register_forward_pre_hook(hook).remove)
        evaluate(loop, fed)
    return given if given is not None else torch.empty(0), seen[0] if seen else None


# --- text -----------------------------------------------------------------------------------------


def decoder(loop: Loop, ids: Tensor) -> Callable[[Sequence[int]], str] | None:
    """Return what turns ``ids`` into text by the program's own vocabulary; None without one."""
    wanted = [int(i) for i in torch.unique(ids)]
    for name, thing in _vocabularies(loop):
        decode = _decoding(name, thing, wanted)
        if decode is not None:
            return decode
    return None


def _vocabularies(loop: Loop) -> Iterator[tuple[str, Any]]:
    holders: list[Any] = []
    dataset = getattr(loop.train_loader, "dataset", None)
    while dataset is not None:
        holders.append(dataset)
        dataset = getattr(dataset, "dataset", None)
    collate = getattr(loop.train_loader, "collate_fn", None)
    holders += [collate, getattr(collate, "__self__", None), loop.model]
    files = {str(file) for file in source_files(loop)}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        if file and str(Path(file).resolve()) in files:
            holders.append(module)
    for holder in holders:
        for name, value in list(getattr(holder, "__dict__", {}).items()):
            if _VOCABULARY.search(name):
                yield name, value


def _decoding(name: str, thing: Any, wanted: list[int]) -> Callable[[Sequence[int]], str] | None:
    if callable(getattr(thing, "decode", None)) and not isinstance(thing, (bytes, type)):
        return _by_tokenizer(thing, wanted)
    for attribute in ("itos", "get_itos"):
        inner = getattr(thing, attribute, None)
        if inner is not None and not isinstance(thing, type):
            thing = inner() if callable(inner) else inner
    names = _names(thing)
    if not names or any(i not in names for i in wanted):
        return None
    between = "" if max(len(names[i]) for i in wanted) == 1 else " "
    return lambda row: between.join(names[int(i)] for i in row)


def _by_tokenizer(thing: Any, wanted: list[int]) -> Callable[[Sequence[int]], str] | None:
    def decode(row: Sequence[int]) -> str:
        return str(thing.decode([int(i) for i in row]))

    try:
        decode(wanted[:4])
    except Exception:
        return None  # it decodes something else
    return decode


def _names(thing: Any) -> dict[int, str]:
    """Return what each id is called, from any of the usual tables."""
    if isinstance(thing, Mapping):
        items = list(thing.items())
        if items and all(isinstance(k, str) and isinstance(v, int) for k, v in items):
            return {v: k for k, v in items}
        if items and all(isinstance(k, int) and isinstance(v, str) for k, v in items):
            return dict(items)
        return {}
    if isinstance(thing, (list, tuple, str, np.ndarray)) and len(thing) > 1:
        words = [str(each) for each in thing]
        plain = isinstance(thing, str) or all(isinstance(each, str) for each in thing)
        # A running text is no table: there every entry occurs once.
        return dict(enumerate(words)) if plain and len(set(words)) == len(words) else {}
    return {}


def as_text(decode: Callable[[Sequence[int]], str], row: Sequence[int]) -> str:
    """Return the beginning of a decoded row, on one line."""
    try:
        text = decode(row).replace("\n", "\\n")
    except Exception:
        text = " ".join(str(i) for i in row)
    return text if len(text) <= _TEXT else f"{text[:_TEXT]} ..."
