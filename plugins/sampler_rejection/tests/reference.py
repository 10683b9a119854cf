"""What is kept, by definition: float64, sorted, one row at a time. And rows of logits to try it on."""

import numpy as np


def probabilities(logits, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """[V]: zero for what may not be drawn. Equals stand in the order of their ids; the limits keep the beginning."""
    logits = np.asarray(logits, np.float64)
    order = np.lexsort((np.arange(len(logits)), -logits))
    weights = np.exp((logits[order] - logits[order[0]]) / np.float64(np.float32(temperature)))
    kept = len(order)
    if 0 < top_k < kept:
        kept = top_k
    if top_p < 1:
        sums = np.cumsum(weights[:kept])
        kept = min(kept, int((sums < np.float64(np.float32(top_p)) * sums[-1]).sum()) + 1)
    if min_p > 0:
        kept = min(kept, int((weights >= np.float64(np.float32(min_p))).sum()))
    drawn = np.zeros(len(logits))
    drawn[order[:kept]] = weights[:kept] / weights[:kept].sum()
    return drawn


def smooth(random, vocab):
    return (random.standard_normal(vocab) * 3).astype(np.float32)


def tied(random, vocab):
    """A bfloat16 head gives a few hundred different values to a hundred thousand tokens."""
    return (np.round(random.standard_normal(vocab) * 3 * 4) / 4).astype(np.float32)


def peaked(random, vocab):
    logits = random.standard_normal(vocab)
    logits[random.permutation(vocab)[:20]] += 12
    return logits.astype(np.float32)


def flat(random, vocab):
    return np.zeros(vocab, np.float32)


SHAPES = (smooth, tied, peaked, flat)
