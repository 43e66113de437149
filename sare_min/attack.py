"""The relearning attack: how little fine-tuning brings the erased hallucinations back?"""

from collections.abc import Iterator, Sequence

import torch
from torch import nn
from tqdm.auto import tqdm

from .captions import Captions, sentence_nll
from .llava import trainable


def relearn(
    model: nn.Module,
    data: Captions,
    at: Sequence[int],
    lr: float = 2e-4,
    batch_size: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[int]:
    """Fine-tune the model's trainable parameters on captions by plain cross-entropy, in one pass
    over shuffled rows.

    data: hallucinated captions for the relearning attack (clean ones make benign fine-tuning).
    Yields the number of samples seen, at each of `at`, so that the caller measures between the
    steps: `for n in relearn(...): curve[n] = evaluate(model)`. Raises ValueError if `at` is
    empty, asks for more samples than the data have, or for no multiple of batch_size.
    Source: Unlearn-Smooth's WMDP relearning (AdamW, plain CE, one pass;
    OPTML-Group/Unlearn-Smooth).
    """
    if not at or min(at) < 0 or max(at) > len(data) or any(n % batch_size for n in at):
        raise ValueError(f"at={list(at)}: give multiples of {batch_size=} up to {len(data)} rows.")
    params = trainable(model)
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=0.0, fused=True)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    for n in tqdm(range(0, max(at) + 1, batch_size), desc="relearn", disable=not progress):
        if n in at:
            yield n
        if n < max(at):
            optimizer.zero_grad()
            sentence_nll(model, data[order[n : n + batch_size]].to(params[0].device)).backward()
            optimizer.step()
