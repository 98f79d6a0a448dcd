"""Fine-tuning beside transformers and PyTorch: the same recipe takes the same steps, for a classifier and for completions; NEFTune's size.

pytest -m parity tests/parity/test_sft.py
"""
import numpy as np
import pytest

from pyllm import data, objectives, training
from pyllm.data import Row
from pyllm.folders import build, load_weights

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

BERT = dict(model_type="bert", vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
            num_labels=3, max_position_embeddings=33, initializer_range=0.2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
LLAMA = dict(model_type="llama", vocab_size=67, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2, tie_word_embeddings=True)
STEPS, LR, DECAY = 8, 3e-3, 0.1


def rows(labelled):
    draw = np.random.default_rng(0)
    for i in range(40):
        n = int(draw.integers(5, 20))
        ids = draw.integers(1, 67, n).astype(np.int32)
        yield Row(ids, np.arange(n) >= n // 2, label=int(ids[1]) % 3 if labelled else None)


@pytest.mark.parametrize("values, kind", [(BERT, "AutoModelForSequenceClassification"), (LLAMA, "AutoModelForCausalLM")])
@pytest.mark.parametrize("layer_decay", [1.0, 0.7])
def test_the_same_recipe_takes_the_same_steps(values, kind, layer_decay):
    import torch
    import transformers

    torch.manual_seed(0)
    peer = getattr(transformers, kind).from_config(transformers.AutoConfig.for_model(**values))
    ours = build({**peer.config.to_dict(), "architectures": [type(peer).__name__]})
    load_weights(ours, {n: p.detach().numpy() for n, p in peer.named_parameters()})
    classifier = values is BERT
    schedule = training.linear(LR, STEPS, 2)

    def depth(name):
        if "embeddings" in name or "embed_tokens" in name:
            return 4
        found = [int(part) for part in name.split(".") if part.isdigit()]
        return 3 - found[0] if found else 0

    groups = [{"params": [p], "weight_decay": DECAY if p.ndim >= 2 else 0.0, "scale": layer_decay ** depth(n)}
              for n, p in peer.named_parameters()]
    theirs = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.999), eps=1e-8)
    make = lambda: data.row_batches(list(rows(classifier)), batch=8, seed=1)
    losses, batches = [], make()
    for step in range(STEPS):
        total, count = 0.0, 0
        for _ in range(2):  # accumulated by sums, as ours
            batch = next(batches)
            logits = peer(input_ids=torch.tensor(batch.tokens, dtype=torch.long), attention_mask=torch.tensor(batch.segments)).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), torch.tensor(batch.targets, dtype=torch.long).flatten(),
                                                     ignore_index=-100, reduction="sum")
            loss.backward()
            total, count = total + float(loss.detach()), count + batch.count
        for p in peer.parameters():
            p.grad /= count
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        for group in theirs.param_groups:
            group["lr"] = schedule(step) * group["scale"]
        theirs.step()
        theirs.zero_grad()
        losses.append(total / count)

    rates = training.layerwise(ours, layer_decay) if layer_decay < 1 else None
    optimizer = training.AdamW(ours, betas=(0.9, 0.999), weight_decay=DECAY, rates=rates)
    objective = objectives.classify if classifier else objectives.clm
    records = list(training.train(ours, objective, make(), optimizer, steps=STEPS, lr=schedule, accumulate=2))
    np.testing.assert_allclose([r.loss for r in records], losses, rtol=2e-4)
    assert losses[-1] < losses[0]


def test_neftune_is_as_large_as_in_trl():
    """Uniform in +- alpha / sqrt(T C), what trl's and transformers' hook adds in training."""
    import torch
    from transformers.integrations.neftune import neftune_post_forward_hook

    from pyllm.autograd import Rng
    from pyllm.nn import Embedding

    peer = torch.nn.Embedding(50, 64)
    peer.neftune_noise_alpha = 5.0
    tokens = np.arange(30, dtype=np.int32).reshape(2, 15)
    theirs = neftune_post_forward_hook(peer, (torch.tensor(tokens),), torch.zeros(2, 15, 64)).numpy()
    ours = Embedding(50, 64)
    ours.noise = 5.0
    mine = ours(tokens, Rng(0)).data
    limit = 5 / (15 * 64) ** 0.5
    assert limit * 0.99 < np.abs(theirs).max() <= limit and limit * 0.99 < np.abs(mine).max() <= limit
    assert abs(mine.std() / theirs.std() - 1) < 0.05
