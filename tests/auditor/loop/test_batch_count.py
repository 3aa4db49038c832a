from __future__ import annotations

import ast
from textwrap import dedent

import pytest

from nnaudit.loop.script.batch_count import depends_on_count


def depends(text: str) -> bool:
    (loop,) = ast.parse(dedent(text)).body
    assert isinstance(loop, (ast.For, ast.While))
    return depends_on_count(loop)


@pytest.mark.parametrize(
    "text",
    [
        """
        for i, (x, y) in enumerate(train_loader):
            adjust(optimizer, epoch + i / len(train_loader))
            step(x, y)
        """,
        """
        for step, (a, b) in enumerate(train_loader):
            start = step // 8 * 8
            group = min(8, len(train_loader) - start)
            (loss(a, b) / group).backward()
        """,
        """
        for i, batch in enumerate(tqdm(loader)):
            loss(batch).backward()
            if (i + 1) % 4 == 0 or (i + 1) == len(loader):
                optimizer.step()
        """,
        """
        for batch in loader:
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, step / warmup)
            train(batch)
        """,
        """
        for i, batch in enumerate(loader):
            if i >= len(loader) - 1:
                break
            train(batch)
        """,
        """
        for i, batch in enumerate(loader):
            train(batch)
            if i % len(loader) == len(loader) - 1:
                scheduler.step()
        """,
    ],
    ids=["rate", "group", "last", "warm-up", "break", "modulo-length"],
)
def test_what_follows_the_number_of_batches(text: str) -> None:
    assert depends(text)


@pytest.mark.parametrize(
    "text",
    [
        """
        for x, y in train_loader:
            total += loss(x, y).item()
        """,
        """
        for batch_idx, (data, target) in enumerate(train_loader):
            loss = train(data, target)
            if batch_idx % args.log_interval == 0:
                print(f"{batch_idx * len(data)}/{len(train_loader.dataset)}: {loss.item()}")
        """,
        """
        for i, (x, y) in enumerate(loader):
            running += train(x, y).item()
            if i % 100 == 99:
                logger.info("%d %.3f", i + 1, running / 100)
                running = 0.0
        """,
        """
        for i, (x, y) in enumerate(loader):
            (loss(x, y) / accumulate).backward()
            if (i + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        """,
        """
        for batch in loader:
            writer.add_scalar("loss", train(batch), step)
            step += 1
        """,
        """
        for i, batch in enumerate(loader):
            progress.set_postfix(done=i / len(loader))
            train(batch)
        """,
    ],
    ids=["plain", "log-interval", "running-mean", "accumulation", "tracker", "progress"],
)
def test_what_is_shown_or_taken_modulo_a_number_is_no_dependence(text: str) -> None:
    assert not depends(text)
