"""A trunk that goes on with another head: every weight of it, and nothing else in silence."""
import numpy as np
import pytest

from pyllm import training
from pyllm.errors import ConfigError
from pyllm.folders import build
from pyllm.models import FAMILIES
from pyllm.nn import quantize

SIZES = {"vocab_size": 11, "layers": 2, "heads": 2, "width": 8, "context": 16, "dropout": 0.1}
TOKENS = np.arange(10, dtype=np.int32).reshape(2, 5)
TOKENS[:, -1] = 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_trunk_is_the_same_and_the_rest_is_reported(family):
    config = FAMILIES[family][0].from_dict({**FAMILIES[family][0].from_sizes(SIZES | {"dropout": 0.0}).to_dict(), "eos_token_id": 1})
    old = build(config, seed=1)
    new, fresh, left = training.transfer(old, "classify", labels=["bad", "good", "odd"])
    own, given = ({n.removeprefix(m.PREFIX): p for n, p in m.named_parameters()} for m in (new, old))
    fresh, left = ([n.removeprefix(m.PREFIX) for n in names] for m, names in ((new, fresh), (old, left)))
    assert {n for n, p in own.items() if n not in given} == set(fresh) and all(own[n].data is given[n].data for n in own if n not in fresh)
    assert set(left) == set(given) - set(own) and new(TOKENS).shape == (2, 3)
    assert new.config.to_dict()["id2label"] == {"0": "bad", "1": "good", "2": "odd"} and new.config.labels() == 3
    again, _, _ = training.transfer(old, "classify", labels=["bad", "good", "odd"])
    assert all(np.array_equal(a.data, b.data) for a, b in zip(new.parameters(), again.parameters()))
    other, _, _ = training.transfer(old, "classify", labels=["bad", "good", "odd"], seed=1)
    drawn = {n.removeprefix(other.PREFIX): p for n, p in other.named_parameters()}[fresh[0]]
    assert not np.array_equal(drawn.data, own[fresh[0]].data) or fresh[0].endswith("bias")


def test_a_bare_trunk_a_classifier_and_a_language_model_give_one_another_their_weights():
    config = FAMILIES["bert"][0].from_sizes(SIZES)
    bare = build({**config.to_dict(), "architectures": ["BertModel"]}, seed=1)
    classifier, fresh, left = training.transfer(bare, "classify", labels=["0", "1"])
    assert (fresh, left) == (["classifier.weight", "classifier.bias"], [])
    wider, fresh, left = training.transfer(classifier, "classify", labels=["0", "1", "2"])
    assert fresh == left == ["classifier.weight", "classifier.bias"]
    same, fresh, left = training.transfer(classifier, "classify")
    np.testing.assert_array_equal(same(TOKENS).data, classifier(TOKENS).data)
    assert fresh == left == []
    _, fresh, left = training.transfer(classifier, "lm")
    assert set(left) == {"bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias"}
    assert fresh and all(name.startswith("cls.") for name in fresh)


def test_dropout_instead_of_the_configurations():
    from pyllm.autograd import Rng

    old = build(FAMILIES["bart"][0].from_sizes({**SIZES, "dropout": 0.0}), seed=1)
    new, fresh, left = training.transfer(old, "lm", dropout=0.3)
    assert not fresh and not left and new.config.dropout == 0.3
    call = lambda model: model(TOKENS, TOKENS, rng=Rng(0)).data
    assert not np.array_equal(call(new), call(old))
    np.testing.assert_array_equal(new(TOKENS, TOKENS).data, old(TOKENS, TOKENS).data)


def test_what_has_no_such_head_and_packed_weights_are_errors():
    with pytest.raises(ConfigError, match="BartForTokenClassification"):
        training.transfer(build(FAMILIES["bart"][0].from_sizes(SIZES)), "tag", labels=["0", "1"])
    with pytest.raises(ConfigError, match="task='sort'; expected one of lm, classify"):
        training.transfer(build(FAMILIES["bart"][0].from_sizes(SIZES)), "sort")
    packed = quantize(build(FAMILIES["gpt2"][0].from_sizes(SIZES), seed=0), "bf16")
    with pytest.raises(ValueError, match=r"packed weights.*Hint: pyllm.quantize"):
        training.transfer(packed, "classify", labels=["0", "1"])
