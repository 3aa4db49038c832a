"""A transformers Trainer on a tiny model made from its configuration."""

import sys

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments


class Tokens(Dataset):
    def __init__(self, n, seed):
        generator = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(5, 40, (n, 10), generator=generator)

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        ids = self.ids[i]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": int(ids[0] > 22),
        }


def main():
    config = BertConfig(
        vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    arguments = TrainingArguments(
        output_dir="hf_out",
        per_device_train_batch_size=8,
        gradient_accumulation_steps=int(sys.argv[1]) if len(sys.argv) > 1 else 1,
        learning_rate=2e-3,
        warmup_steps=2,
        max_steps=6,
        logging_steps=3,
        eval_strategy="steps",
        eval_steps=3,
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
    )
    trainer = Trainer(
        model=BertForSequenceClassification(config),
        args=arguments,
        train_dataset=Tokens(64, 0),
        eval_dataset=Tokens(32, 1),
    )
    trainer.train()


if __name__ == "__main__":
    main()
