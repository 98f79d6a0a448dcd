"""Freezing, rates by path, layer-wise decay: what they would get wrong without anybody seeing it."""
import numpy as np
import pytest

from pyllm import training
from pyllm.autograd import Rng
from pyllm.folders import build
from pyllm.models import FAMILIES
from pyllm.models.seq2seq import EncoderDecoder
from pyllm.objectives import clm
from tests.training import tiny

SIZES = {"vocab_size": 11, "layers": 3, "heads": 2, "width": 8, "context": 16}


def test_a_frozen_parameter_keeps_its_bits_and_the_others_learn():
    model = tiny.gpt2().initialize(0)
    frozen = training.freeze(model, [r"\.wte\.", r"\.h\.0\."])
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    for _ in training.train(model, clm, tiny.Run().loader, training.AdamW(model), steps=2, lr=0.01):
        pass
    same = [name for name, p in model.named_parameters() if np.array_equal(p.data, before[name])]
    assert same == frozen and len(frozen) > 3


def test_a_pattern_that_meets_nothing_is_an_error():
    model = tiny.gpt2()
    with pytest.raises(ValueError, match=r"freeze: \['layers'\] is in no path.*transformer.wte.weight"):
        training.freeze(model, ["wte", "layers"])
    with pytest.raises(ValueError, match="leaves no parameter"):
        training.freeze(model, ".")
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ValueError, match=r"rates: \['lm_head'\] is in no path"):
        training.AdamW(model, rates={"wte": 0.1, "lm_head": 2.0})
    with pytest.raises(ValueError, match="freeze for 0"):
        training.AdamW(model, rates={"wte": 0.0})


def test_a_rate_is_a_factor_of_the_learning_rate():
    """The step of a parameter with factor f is that of all parameters at lr f; the first pattern counts; moments and decay take part."""
    def stepped(lr, **options):
        model = tiny.filled(tiny.gpt2())
        for p in model.parameters():
            p.grad = np.sin(p.data * 9)
        training.AdamW(model, **options).step(lr)
        return model.state()

    mixed = stepped(0.1, rates={r"h\.1\.": 0.5, r"\.h\.": 0.25})
    for factor, part in ((0.5, ".h.1."), (0.25, ".h.0."), (1.0, "wte")):
        alone = stepped(0.1 * factor)
        assert [np.testing.assert_array_equal(mixed[n], alone[n]) for n in mixed if part in n]


@pytest.mark.parametrize("family", FAMILIES)
def test_layerwise_decay_falls_from_the_head_to_the_embeddings(family):
    model = build(FAMILIES[family][0].from_sizes(SIZES))
    rates = training.AdamW(model, rates=training.layerwise(model, 0.5)).rates
    embedding = next(name for name, p in model.named_parameters() if p is model.head_weight() or "embed" in name or "shared" in name)
    assert rates[embedding] == 0.5**4
    blocks = [(name, rate) for name, rate in rates.items() if rate > 0.5**4]
    assert {rate for _, rate in blocks} == {0.5, 0.25, 0.125}
    for name, rate in blocks:
        assert rate == 0.5 ** (3 - int(next(part for part in name.split(".") if part.isdigit()))), name


def test_layerwise_decay_leaves_a_head_its_rate():
    config = FAMILIES["bert"][0].from_sizes(SIZES)
    model = build({**config.to_dict(), "architectures": ["BertForSequenceClassification"]})
    rates = training.AdamW(model, rates=training.layerwise(model, 0.5)).rates
    assert "classifier.weight" not in rates and "bert.pooler.dense.weight" not in rates
    assert rates["bert.embeddings.LayerNorm.weight"] == rates["bert.embeddings.position_embeddings.weight"] == 0.5**4


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_moves_the_training_alone_and_reaches_every_family(family):
    model = build(FAMILIES[family][0].from_sizes(SIZES), seed=0)
    tokens = np.arange(10, dtype=np.int32).reshape(1, 10)
    both = isinstance(model, EncoderDecoder)
    sides = (tokens, tokens) if both else (tokens,)
    call = lambda rng: model(*sides, rng=rng).data
    still, key = call(None), Rng(3)
    without = call(key)
    (model if both else model.trunk).embedding().noise = 5.0
    np.testing.assert_array_equal(call(None), still)
    assert not np.array_equal(call(key), without) and np.array_equal(call(key), call(key))


def test_noise_is_uniform_within_alpha_over_the_root_of_the_rows_numbers():
    embedding = tiny.gpt2(n_embd=64).initialize(0).trunk.wte
    embedding.noise = 5.0
    ids = np.zeros((4, 32), np.int32)
    noise = (embedding(ids, Rng(0)).data - embedding(ids).data) * (32 * 64) ** 0.5 / 5
    assert 0.999 < np.abs(noise).max() <= 1.0001 and abs(noise.mean()) < 0.02 and abs(noise.var() - 1 / 3) < 0.02
