"""Losses of preferences and of policies: each against its definition in plain loops, whatever the split, the padding; bad input."""
import math
from functools import partial

import numpy as np
import pytest

from pyllm.align import ActorCritic
from pyllm.data.batch import IGNORED, Batch
from pyllm.folders import build
from pyllm.objectives import ALIGNMENT, cpo, dpo, grpo, kto, orpo, ppo, reward_pairs, simpo
from tests.objectives.cases import STD, V, SIZES

B, T = 6, 9


def policy(seed=1, dtype=np.float32, family="gpt2"):
    model = build({"model_type": family, "vocab_size": V, **SIZES[family], STD[family]: 0.4}, seed=seed)
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def rewarder(dtype=np.float32):
    model = build({"model_type": "llama", "vocab_size": V, **SIZES["llama"], "initializer_range": 0.4,
                   "architectures": ["LlamaForSequenceClassification"], "num_labels": 1}, seed=2)
    for p in model.parameters():
        p.data = p.data.astype(dtype)
    return model


def critic(dtype=np.float32):
    model = ActorCritic(policy(1, dtype))
    model.value.weight.data = np.random.default_rng(0).standard_normal(model.value.weight.shape).astype(dtype) * 0.3
    model.value.bias.data = model.value.bias.data.astype(dtype)
    return model


def batch(seed=0, left=0, right=0, ids=V):
    """Responses of different lengths behind prompts of different lengths, all that any of the losses asks for in `extra`."""
    draw = np.random.default_rng(seed)
    prompts, lengths = [2, 4, 1, 3, 2, 2], [5, 2, 7, 1, 6, 3]
    width = left + right + T
    tokens, targets = np.full((B, width), 7, np.int32), np.full((B, width), IGNORED, np.int32)
    segments = np.zeros((B, width), np.int32)
    arrays = {name: np.zeros((B, width)) for name in ("logp", "ref_logps", "advantages", "values", "returns")}
    for b, (p, n) in enumerate(zip(prompts, lengths)):
        begin = width - right - p - n if left else 0
        row = draw.integers(0, ids, p + n)
        tokens[b, begin : begin + p + n], segments[b, begin : begin + p + n] = row, 1
        at = slice(begin + p - 1, begin + p + n - 1)
        targets[b, at] = row[p:]
        for name, low in (("logp", -3), ("ref_logps", -3), ("advantages", 0), ("values", 0), ("returns", 0)):
            arrays[name][b, at] = draw.standard_normal(n) * 0.3 + low
    rows = {"ref_logp": arrays["ref_logps"].sum(1), "label": np.array([1, 0, 1, 1, 0, 1]), "kl": np.full(B, 0.3),
            "margin": draw.random(B), "row_advantages": draw.standard_normal(B)}
    return Batch(tokens, targets, segments, extra={**arrays, **rows})


def named(batch, **names):
    """The batch with some of its arrays under the names that a loss asks for."""
    extra = {**batch.extra, **{new: batch.extra[old] for new, old in names.items()}}
    return Batch(batch.tokens, batch.targets, batch.segments, extra=extra)


def log_probs(model, batch, temperature=1.0):
    """-> a list a row: log p of each target, from the logits one by one; and the entropies there."""
    logits = model(batch.tokens, batch.segments).data.astype(np.float64) / temperature
    rows, entropies = [], []
    for b in range(len(batch.tokens)):
        row, entropy = [], []
        for t in np.flatnonzero(batch.targets[b] >= 0):
            p = np.exp(logits[b, t] - logits[b, t].max())
            p /= p.sum()
            row.append(math.log(p[batch.targets[b, t]]))
            entropy.append(-sum(q * math.log(q) for q in p))
        rows.append(row)
        entropies.append(entropy)
    return rows, entropies


def log_sigmoid(x):
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def at_targets(batch, name):
    return [batch.extra[name][b, batch.targets[b] >= 0] for b in range(len(batch.tokens))]


def clip(x, low, high):
    return min(max(x, low), high)


# ---- definitions

def dpo_loops(kind, s, batch, model, beta=0.3):
    logp = log_probs(model, batch)[0]
    total = 0
    for i in range(0, B, 2):
        ratios = [sum(logp[j]) - batch.extra["ref_logp"][j] for j in (i, i + 1)]
        h = beta * (ratios[0] - ratios[1])
        total += {"sigmoid": -(1 - s) * log_sigmoid(h) - s * log_sigmoid(-h), "hinge": max(0, 1 - h),
                  "robust": (-(1 - s) * log_sigmoid(h) + s * log_sigmoid(-h)) / (1 - 2 * s),
                  "ipo": (ratios[0] / len(logp[i]) - ratios[1] / len(logp[i + 1]) - 1 / (2 * beta)) ** 2}[kind]
    return total, B // 2


def without_reference(kind, batch, model):
    logp = log_probs(model, batch)[0]
    total = 0
    for i in range(0, B, 2):
        (a, m), (b, n) = ((sum(r), sum(r) / len(r)) for r in logp[i : i + 2])
        odds = (m - math.log1p(-math.exp(m))) - (n - math.log1p(-math.exp(n)))
        total += {"simpo": -log_sigmoid(2.0 * (m - n) - 0.5),
                  "cpo": -0.9 * log_sigmoid(0.1 * (a - b)) - 0.1 * log_sigmoid(-0.1 * (a - b)) - m,
                  "orpo": -m - 0.1 * log_sigmoid(odds)}[kind]
    return total, B // 2


def kto_loops(batch, model):
    total = 0
    for row, ref, label, kl in zip(log_probs(model, batch)[0], batch.extra["ref_logp"], batch.extra["label"], batch.extra["kl"]):
        h = sum(row) - ref
        total += 1.5 * (1 - math.exp(log_sigmoid(0.2 * (h - kl)))) if label else 0.5 * (1 - math.exp(log_sigmoid(0.2 * (kl - h))))
    return total, B


def pairs_loops(k, batch, model):
    r = model(batch.tokens, batch.segments).data[:, 0].tolist()
    total = 0
    for i in range(0, B, k):
        group = r[i : i + k]
        if k == 2:
            total -= log_sigmoid(group[0] - group[1] - batch.extra["margin"][i])
        else:
            total += sum(math.log(sum(math.exp(x) for x in group[j:])) - group[j] for j in range(k))
        total += 0.01 * sum(group) ** 2
    return total, B // k


def ppo_loops(batch, model):
    logp, entropies = log_probs(model.policy, batch, 0.7)
    hidden = model.hidden(batch.tokens, batch.segments).data
    total = count = 0
    for b in range(B):
        at = np.flatnonzero(batch.targets[b] >= 0)
        values = hidden[b, at] @ model.value.weight.data[0] + model.value.bias.data[0]
        old, advantage, before, target = (at_targets(batch, name)[b] for name in ("logp", "advantages", "values", "returns"))
        for i in range(len(at)):
            ratio = math.exp(logp[b][i] - old[i])
            total += max(-advantage[i] * ratio, -advantage[i] * clip(ratio, 0.8, 1.2)) - 0.01 * entropies[b][i]
            bound = before[i] + clip(values[i] - before[i], -0.2, 0.2)
            total += 0.1 * 0.5 * max((values[i] - target[i]) ** 2, (bound - target[i]) ** 2)
            count += 1
    return total, count


def grpo_loops(kind, batch, model):
    logp = log_probs(model, batch)[0]
    total = 0
    for b, row in enumerate(logp):
        a, old, ref = batch.extra["advantages"][b], at_targets(batch, "logp")[b], at_targets(batch, "ref_logp")[b]
        kl = [math.exp(r - p) - (r - p) - 1 for p, r in zip(row, ref)]
        if kind == "rloo":
            ratio = math.exp(sum(row) - sum(old))
            total += max(-a * ratio, -a * clip(ratio, 0.8, 1.28)) + 0.04 * sum(kl) / len(row)
            continue
        ratios = [math.exp(p - o) for p, o in zip(row, old)]
        tokens = [max(-a * r, -a * clip(r, 0.8, 1.28)) + 0.04 * k for r, k in zip(ratios, kl)]
        total += {"grpo": sum(tokens) / len(row), "dr_grpo": sum(tokens) / 10, "dapo": sum(tokens)}[kind]
    return total, sum(map(len, logp)) if kind == "dapo" else B


GROUPS = {"advantages": "row_advantages", "ref_logp": "ref_logps"}
CASES = {  # name: objective, model, its definition, rows that belong together, names in extra
    **{f"dpo-{kind}": (partial(dpo, beta=0.3, loss=kind, label_smoothing=s), policy, partial(dpo_loops, kind, s), 2, {})
       for kind, s in (("sigmoid", 0.0), ("sigmoid", 0.1), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.1))},
    "simpo": (simpo, policy, partial(without_reference, "simpo"), 2, {}),
    "cpo": (partial(cpo, label_smoothing=0.1), policy, partial(without_reference, "cpo"), 2, {}),
    "orpo": (orpo, policy, partial(without_reference, "orpo"), 2, {}),
    "kto": (partial(kto, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5), policy, kto_loops, 1, {}),
    "reward_pairs-2": (partial(reward_pairs, centre=0.01), rewarder, partial(pairs_loops, 2), 2, {}),
    "reward_pairs-3": (partial(reward_pairs, centre=0.01, k=3), rewarder, partial(pairs_loops, 3), 3, {"drop": "margin"}),
    "ppo": (partial(ppo, entropy_coef=0.01, temperature=0.7), critic, ppo_loops, 1, {}),
    **{f"grpo-{kind}": (partial(grpo, loss=kind, beta=0.04, epsilon_high=0.28, max_length=10), policy, partial(grpo_loops, kind), 1, GROUPS)
       for kind in ("grpo", "dr_grpo", "dapo", "rloo")},
}
EVERY = pytest.mark.parametrize("name", CASES)


def made(name, **options):
    objective, model, loops, k, names = CASES[name]
    names = dict(names)
    found = batch(**options)
    if drop := names.pop("drop", None):
        del found.extra[drop]
    return objective, model, loops, k, named(found, **names)


def test_every_objective_of_alignment_has_a_case():
    assert {name.split("-")[0] for name in CASES} == ALIGNMENT.keys()


@EVERY
def test_the_definition(name):
    objective, model, loops, _, data = made(name)
    model = model(dtype=np.float64)
    loss, (total, count) = objective(model, data), loops(data, model)
    assert loss.count == count
    assert loss.total.item() == pytest.approx(total, rel=1e-6)


@EVERY
def test_gradient_accumulation_and_padding_leave_the_step_unchanged(name):
    objective, model, _, k, data = made(name)

    def step(parts):
        net = model()
        total = count = 0
        for part in parts:
            loss = objective(net, part)
            loss.total.backward()
            total, count = total + loss.total.item(), count + loss.count
        return total / count, {n: p.grad / count for n, p in net.named_parameters() if p.grad is not None}

    loss, grads = step([data])
    assert max(np.abs(g).max() for g in grads.values()) > 1e-3
    most = max(np.abs(g).max() for g in grads.values())
    for parts in ([data.rows(slice(0, k)), data.rows(slice(k, B))], [data.rows(slice(i, i + k)) for i in range(0, B, k)],
                  [made(name, right=4)[4]], [made(name, left=3)[4]]):
        other, found = step(parts)
        assert other == pytest.approx(loss, rel=1e-6)
        for n, g in grads.items():
            assert np.abs(found[n] - g).max() <= 1e-6 * max(1, most), n


def test_a_reference_given_as_a_model_is_the_one_computed_before():
    model, reference, data = policy(), policy(4), batch()
    known = [sum(row) for row in log_probs(reference, data)[0]]
    with_logp = Batch(data.tokens, data.targets, data.segments, extra={"ref_logp": np.array(known)})
    bare = Batch(data.tokens, data.targets, data.segments)
    assert dpo(model, bare, reference=reference).total.item() == pytest.approx(dpo(model, with_logp).total.item(), rel=1e-5)
    assert dpo(model, bare, reference=model).total.item() == pytest.approx(B // 2 * math.log(2), rel=1e-6)


def test_an_encoder_decoder_learns_preferences():
    model = policy(family="t5")
    draw = np.random.default_rng(0)
    tokens, answers = (draw.integers(0, V, (4, 5)).astype(np.int32) for _ in range(2))
    data = Batch(tokens, answers, None, np.roll(answers, 1, 1), extra={"ref_logp": np.zeros(4)})
    loss = dpo(model, data)
    loss.total.backward()
    assert loss.count == 2 and math.isfinite(loss.total.item())


def pairs_with(**changes):
    data = batch()
    fields = {"tokens": data.tokens.copy(), "targets": data.targets.copy(), "segments": data.segments.copy(), "extra": dict(data.extra)}
    for name, change in changes.items():
        change(fields[name])
    return Batch(**fields)


def equal(tokens):
    tokens[3] = tokens[2]


@pytest.mark.parametrize("objective", [dpo, simpo, cpo, orpo])
def test_bad_pairs_are_refused(objective):
    with pytest.raises(ValueError, match="row 3 has an empty response"):
        objective(policy(), pairs_with(targets=lambda t: t.__setitem__(3, IGNORED)))
    with pytest.raises(ValueError, match="rows 2 and 3 are equal"):
        objective(policy(), pairs_with(tokens=equal, segments=equal, targets=equal))
    with pytest.raises(ValueError, match="groups of 2"):
        objective(policy(), batch().rows(slice(0, 3)))


def test_what_is_missing_or_not_finite_is_named():
    data = batch()
    bare = Batch(data.tokens, data.targets, data.segments)
    with pytest.raises(ValueError, match="no reference; expected extra"):
        dpo(policy(), bare)
    with pytest.raises(ValueError, match=r"ppo: no extra\['logp'\]"):
        ppo(critic(), bare)
    with pytest.raises(ValueError, match=r"extra\['ref_logp'\] is nan in row 4"):
        dpo(policy(), pairs_with(extra=lambda e: e.update(ref_logp=np.where(np.arange(B) == 4, np.nan, 0.0))))
    with pytest.raises(ValueError, match="one number of at least 0"):
        kto(policy(), pairs_with(extra=lambda e: e.update(kl=np.arange(B) * 0.1)))
    with pytest.raises(ValueError, match="num_labels 1"):
        reward_pairs(build({"model_type": "llama", "vocab_size": V, **SIZES["llama"], "architectures": ["LlamaForSequenceClassification"],
                            "num_labels": 3}, seed=0), batch())


def test_a_reward_is_read_at_the_last_real_token_whatever_the_padding():
    """Not at the first padding, not at a token that happens to be the padding's (transformers#35352)."""
    model, plain = rewarder(), batch()
    expected = model(plain.tokens, plain.segments).data
    for other in (batch(right=5), batch(left=3)):
        np.testing.assert_allclose(model(other.tokens, other.segments).data, expected, atol=1e-6)
    longer = plain.segments.copy()
    longer[0, 7] = 1  # a token more, equal to the padding
    assert abs(model(plain.tokens, longer).data[0, 0] - expected[0, 0]) > 1e-3
