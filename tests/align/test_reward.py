"""Rewards: at the end of a step, across tokenizers, of any classifier, with margins from files, scaled before training."""
from dataclasses import replace

import numpy as np
import pytest

from pyllm.align import RewardModel, assemble, rule, step_ends
from pyllm.data import collate, prepare, read_examples
from pyllm.data.batch import Batch
from pyllm.folders import build
from pyllm.objectives import kto, reward_pairs
from pyllm.text import ByteLevelBPE, WordPiece
from pyllm.training import evaluate

TEXTS = ["one two. three. four", "a good film. bad", "so it goes.", "two good films and one"]
SIZES = {"gpt2": {"n_positions": 64, "n_embd": 16, "n_head": 2, "n_layer": 2},
         "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
                  "max_position_embeddings": 12}}


def classifier(family, tokenizer, *labels):
    name = {"gpt2": "GPT2", "bert": "Bert"}[family] + "ForSequenceClassification"
    return build({"model_type": family, "vocab_size": tokenizer.vocab_size, "architectures": [name], "initializer_range": 0.3,
                  "id2label": {str(i): label for i, label in enumerate(labels)}, **SIZES[family]}, seed=1)


@pytest.fixture(scope="module")
def tokenizer():
    return ByteLevelBPE.train(TEXTS, 290)


def drawn(tokenizer):
    return assemble([tokenizer.encode(text[:3]) for text in TEXTS], [tokenizer.encode(text[3:]) for text in TEXTS], np.zeros(4, bool))


def test_a_process_reward_stands_where_a_step_ends(tokenizer):
    """Not at every token and not at the end alone; the function sees the response up to there and no further."""
    seen = []
    rollout = drawn(tokenizer)
    scores = rule(lambda prompt, response: seen.append((prompt, response)) or len(seen), tokenizer, step=".")(rollout)
    assert seen == [("one", " two."), ("one", " two. three."), ("one", " two. three. four"), ("a g", "ood film."), ("a g", "ood film. bad"),
                    ("so ", "it goes."), ("two", " good films and one")]
    assert scores[scores != 0].tolist() == [1, 2, 3, 4, 5, 6, 7] and not scores[~rollout.mask].any()
    assert all(scores[row, last] for row, last in enumerate(rollout.last))


def test_a_learned_process_reward_is_what_the_model_says_of_the_response_so_far(tokenizer):
    reward, rollout = RewardModel(classifier("gpt2", tokenizer, "reward")), drawn(tokenizer)
    found = reward.at(rollout, step_ends(rollout, tokenizer, "."))
    assert found[np.arange(4), rollout.last].tolist() == reward(rollout).tolist()
    short = assemble([rollout.prompt(0)], [rollout.response(0)[: len(tokenizer.encode(" two."))]], [False])
    assert found[0][found[0] != 0][0] == reward(short)[0] and np.count_nonzero(found) == 7


@pytest.mark.parametrize("own", ["words", "bytes"])
def test_a_reward_with_another_tokenizer_reads_the_text(tokenizer, own):
    """Not the policy's ids, which would be other words to it: the scores are those of the texts as its own rows, of long ones their end."""
    theirs = ByteLevelBPE.train(TEXTS[1:], 270) if own == "bytes" else WordPiece.train(TEXTS, 60)
    model = classifier("gpt2" if own == "bytes" else "bert", theirs, "bad", "good", "neither")
    reward = RewardModel(model, "good", (tokenizer, theirs))
    for text, score in zip(TEXTS, reward(drawn(tokenizer))):
        ids = theirs.encode(text)
        if own == "words" and len(ids) > 12:
            ids = [ids[0], *ids[len(ids) - 11 :]]
        logits = model(np.array([ids], np.int32)).data[0].astype(np.float64)
        p = np.exp(logits) / np.exp(logits).sum()
        assert score == pytest.approx(np.log(p[1] / (1 - p[1])), abs=1e-4)
    with pytest.raises(ValueError, match="label='nice'; expected one of several, the model has"):
        RewardModel(model, "nice")
    with pytest.raises(ValueError, match="a classifier of 3 labels"):
        RewardModel(model)


def test_margins_of_a_file_reach_the_loss(tokenizer, tmp_path):
    """A column that is read by nobody would change nothing and say nothing."""
    lines = '{"prompt": "one", "chosen": " two", "rejected": " film"%s}\n{"prompt": "so", "chosen": " it", "rejected": " goes"}\n'
    model, losses = classifier("gpt2", tokenizer, "reward"), []
    for name, margin in (("none", ""), ("some", ', "margin": 2.5')):
        (tmp_path / f"{name}.jsonl").write_text(lines % margin)
        rows, _ = prepare(read_examples(tmp_path / f"{name}.jsonl"), tokenizer)
        losses.append(evaluate(model, reward_pairs, [collate(rows)]).loss)
    d = RewardModel(model).scores(collate(rows)).reshape(2, 2) @ [1, -1]
    assert losses == [pytest.approx(np.logaddexp(0, -d + shift).mean(), rel=1e-5) for shift in ([0, 0], [2.5, 0])]
    (tmp_path / "wrong.jsonl").write_text(lines % ', "margin": "much"')
    with pytest.raises(ValueError, match="margin is 'much', expected a number"):
        read_examples(tmp_path / "wrong.jsonl")


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scaled_before_training_the_weights_are_scaled_and_the_scores_are_not(tokenizer, family):
    """A gain that stands beside the weights alone is not in what training compares."""
    model, rollout = classifier(family, tokenizer, "reward"), drawn(tokenizer).rows(np.arange(1, 4))
    model.config = replace(model.config, extra={**model.config.extra, "reward_bias": 0.5})
    batch = Batch(rollout.tokens[:, :12], rollout.targets[:, :12], rollout.segments[:, :12])
    raw, reward = RewardModel(model).scores(batch), RewardModel(model).normalize([batch])
    before = reward.scores(batch)
    assert reward.fold().gain == 1 and np.allclose(reward.scores(batch), before, atol=1e-5)
    assert np.std(reward.model(batch.tokens, batch.segments).data) == pytest.approx(1, rel=1e-4) != np.std(raw)


def test_rewards_of_chosen_answers_are_means_over_the_chosen_ones_however_they_are_split(tokenizer):
    """Three good answers of four: a sum over them divided by all rows would be a number of the mixture."""
    batch = drawn(tokenizer).batch(label=np.array([1, 1, 0, 1]), ref_logp=np.array([-3.0, -5, -4, -9]), kl=np.zeros(4))
    model = build({"model_type": "gpt2", "vocab_size": tokenizer.vocab_size, **SIZES["gpt2"]}, seed=1)
    whole, split = (evaluate(model, kto, [batch.rows(slice(i, i + n)) for i in range(0, 4, n)]).metrics for n in (4, 1))
    assert split == pytest.approx(whole) and whole["rewards/chosen"] == pytest.approx(
        0.1 * np.mean([whole["logps/chosen"] + (3 + 5 + 9) / 3]), rel=1e-5)
