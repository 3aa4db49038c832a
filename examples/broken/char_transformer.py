"""A causal character transformer that learns to write Python's own documentation.

Broken on purpose: the optimizer's name filters miss the output head (GRAD102).

The text is ``pydoc_data.topics`` of the standard library; nothing is downloaded.
Train it with ``python examples/broken/char_transformer.py --epochs 10``,
audit it with ``nnaudit examples/broken/char_transformer.py``.
"""

import argparse
import functools
import random
import re
from pydoc_data.topics import topics

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

BATCH_SIZE = 32
CONTEXT = 64
WARMUP_STEPS = 50

Batch = tuple[Tensor, Tensor]


@functools.cache
def load_text() -> str:
    """All topics as one text; passages that several topics share are kept once."""
    passages = dict.fromkeys(
        passage for topic in topics.values() for passage in re.split(r"\n\s*\n", topic)
    )
    return "\n\n".join(passages)


@functools.cache
def load_vocabulary() -> list[str]:
    """Return every character of the text, in order."""
    return sorted(set(load_text()))


@functools.cache
def load_splits() -> Batch:
    """Encode the text; its last tenth is for validation."""
    index = {character: i for i, character in enumerate(load_vocabulary())}
    tokens = torch.tensor([index[character] for character in load_text()])
    boundary = int(0.9 * len(tokens))
    return tokens[:boundary], tokens[boundary:]


class Windows(Dataset):
    """Windows of CONTEXT characters, each with the characters that follow.

    Item i starts somewhere in the i-th stretch of CONTEXT characters: at a random place when
    ``jitter`` is on, at its beginning otherwise.
    """

    def __init__(self, tokens: Tensor, jitter: bool) -> None:
        self.tokens = tokens
        self.jitter = jitter
        self.starts = range(0, len(tokens) - 2 * CONTEXT, CONTEXT)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> Batch:
        start = self.starts[index]
        if self.jitter:
            start += int(torch.randint(CONTEXT, ()))
        window = self.tokens[start : start + CONTEXT + 1]
        return window[:-1], window[1:]


def train_loader() -> DataLoader:
    """Batches of random windows, in a new random order every epoch."""
    train, _ = load_splits()
    return DataLoader(Windows(train, jitter=True), batch_size=BATCH_SIZE, shuffle=True)


def val_loader() -> DataLoader:
    """Batches of adjoining windows, in a fixed order."""
    _, val = load_splits()
    return DataLoader(Windows(val, jitter=False), batch_size=BATCH_SIZE)


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each normalised first and added back."""

    def __init__(self, size: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.norm_attention = nn.LayerNorm(size)
        self.qkv = nn.Linear(size, 3 * size)
        self.project = nn.Linear(size, size)
        self.norm_feed = nn.LayerNorm(size)
        self.expand = nn.Linear(size, 4 * size)
        self.contract = nn.Linear(4 * size, size)

    def attend(self, x: Tensor) -> Tensor:
        """Mix every position with those before it."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=True)
        return self.project(mixed.transpose(1, 2).flatten(2))

    def feed(self, x: Tensor) -> Tensor:
        """Transform every position by itself."""
        return self.contract(F.gelu(self.expand(x)))

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.dropout(self.attend(self.norm_attention(x)), self.dropout, self.training)
        return x + F.dropout(self.feed(self.norm_feed(x)), self.dropout, self.training)


class CharTransformer(nn.Module):
    """Character ids (B, T) to the logits of each next character (B, T, V)."""

    def __init__(
        self,
        vocabulary: int,
        size: int = 128,
        layers: int = 3,
        heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed_token = nn.Embedding(vocabulary, size)
        self.embed_position = nn.Embedding(CONTEXT, size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(*(Block(size, heads, dropout) for _ in range(layers)))
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, vocabulary, bias=False)
        self.apply(self.initialise)

    @staticmethod
    def initialise(module: nn.Module) -> None:
        """Draw weights from a normal distribution of deviation 0.02; biases start at zero."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.dropout(self.embed_token(tokens) + self.embed_position(positions))
        return self.head(self.norm(self.blocks(x)))


def build_model() -> nn.Module:
    """Build the transformer for this text's characters."""
    return CharTransformer(len(load_vocabulary()))


def loss_fn(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of the next character, averaged over all positions."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def training_step(model: nn.Module, batch: Batch) -> Tensor:
    """Loss of one batch, on the device where the model is."""
    device = next(model.parameters()).device
    tokens, following = (part.to(device) for part in batch)
    return loss_fn(model(tokens), following)


def build_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW; biases, normalisation weights and embeddings are not decayed."""
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name or "embed" in name:
            no_decay.append(parameter)
        elif name.startswith("blocks."):
            decay.append(parameter)
    groups = [{"params": decay, "weight_decay": 0.01}, {"params": no_decay, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3)


def build_scheduler(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """Linear warm-up, then a constant rate; to be stepped after every batch."""
    return torch.optim.lr_scheduler.LinearLR(
        optimizer, start_factor=1 / WARMUP_STEPS, total_iters=WARMUP_STEPS
    )


def metrics(output: Tensor, target: Tensor) -> dict[str, float]:
    """Accuracy and macro-averaged F1 of the most likely next character."""
    predicted = output.argmax(dim=-1).flatten()
    target = target.flatten()
    return {
        "accuracy": (predicted == target).float().mean().item(),
        "f1": float(f1_score(target.cpu(), predicted.cpu(), average="macro")),
    }


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
) -> float:
    """Take one optimizer step per batch and return the mean loss."""
    model.train()
    total = 0.0
    for batch in loader:
        optimizer.zero_grad()
        loss = training_step(model, batch)
        loss.backward()
        optimizer.step()
        scheduler.step()
        total += loss.item() * len(batch[0])
    return total / len(loader.dataset)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> dict[str, float]:
    """Loss and metrics over the whole loader."""
    model.eval()
    outputs, targets = [], []
    for tokens, following in loader:
        outputs.append(model(tokens.to(device)))
        targets.append(following.to(device))
    output, target = torch.cat(outputs), torch.cat(targets)
    return {"loss": loss_fn(output, target).item(), **metrics(output, target)}


def main() -> None:
    """Train, and print the validation metrics after every epoch."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    random.seed(args.seed)
    np.random.seed(args.seed)
    torch.manual_seed(args.seed)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model().to(device)
    optimizer = build_optimizer(model)
    scheduler = build_scheduler(optimizer)
    train, val = train_loader(), val_loader()
    for epoch in range(1, args.epochs + 1):
        train_loss = train_one_epoch(model, train, optimizer, scheduler)
        scores = evaluate(model, val, device)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        print(f"epoch {epoch}  train loss {train_loss:.4f}  validation: {shown}")


if __name__ == "__main__":
    main()
