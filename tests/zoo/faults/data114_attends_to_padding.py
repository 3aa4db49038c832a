"""The mask is used where the words are averaged and forgotten in the encoder's attention.

zoo: fails DATA114
"""

import argparse
import pydoc_data.topics
from collections import Counter

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

TOPICS = 4
LONGEST = 16


def lines_of_topics():
    texts = sorted(pydoc_data.topics.topics.values(), key=len)[-TOPICS:]
    return [
        (line.lower().split()[:LONGEST], topic)
        for topic, text in enumerate(texts)
        for line in text.splitlines()
        if len(line.split()) > 2
    ]


LINES = lines_of_topics()
COUNTS = Counter(word for words, _ in LINES for word in words)
VOCABULARY = {word: k + 2 for k, (word, _) in enumerate(COUNTS.most_common(400))}  # 0 pads, 1 else


def collate(items):
    rows = [torch.tensor([VOCABULARY.get(word, 1) for word in words]) for words, _ in items]
    input_ids = pad_sequence(rows, batch_first=True)
    return {
        "input_ids": input_ids,
        "attention_mask": (input_ids != 0).long(),
        "labels": torch.tensor([topic for _, topic in items]),
    }


def train_loader():
    lines = [line for k, line in enumerate(LINES) if k % 5]
    return DataLoader(lines, batch_size=32, shuffle=True, collate_fn=collate)


def val_loader():
    return DataLoader(LINES[::5], batch_size=128, collate_fn=collate)


class Encoder(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.embed = nn.Embedding(len(VOCABULARY) + 2, width, padding_idx=0)
        self.place = nn.Embedding(LONGEST, width)
        layer = nn.TransformerEncoderLayer(width, 2, 2 * width, 0.1, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(width, TOPICS)

    def forward(self, input_ids, attention_mask):
        h = self.embed(input_ids) + self.place(torch.arange(input_ids.shape[1]))
        h = self.body(h)
        mask = attention_mask.unsqueeze(-1)
        return self.head((h * mask).sum(1) / mask.sum(1))


def build_model(width=16):
    return Encoder(width)


def loss_fn(logits, labels):
    return F.cross_entropy(logits, labels)


def build_optimizer(model):
    return torch.optim.AdamW(model.parameters(), lr=2e-3)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    model, train, val = build_model(), train_loader(), val_loader()
    optimizer = build_optimizer(model)
    for epoch in range(args.epochs):
        model.train()
        for batch in train:
            labels = batch.pop("labels")
            loss = loss_fn(model(**batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right = 0
        with torch.no_grad():
            for batch in val:
                labels = batch.pop("labels")
                right += (model(**batch).argmax(1) == labels).sum().item()
        print(f"epoch {epoch}: {right} of {len(val.dataset)} right")


if __name__ == "__main__":
    main()
