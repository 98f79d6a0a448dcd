"""Policies and references: a policy with its value function, frozen copies, log-probabilities without a tape."""
import copy
from dataclasses import replace

import numpy as np

from pyllm import peft
from pyllm.autograd import no_grad
from pyllm.data.batch import IGNORED, Batch
from pyllm.nn import Linear, Module
from pyllm.objectives.sequences import response_log_probs, token_log_probs

ROWS = 32  # rows of a forward without a tape


class ActorCritic(Module):
    """A policy, any CausalLM, and what expects its rewards: a linear layer on the policy's own hidden states, or a ValueModel of its own.

    value: None for the layer, which starts at zero, so that the first values are 0; or a ValueModel, such as
    pyllm.build({**config, "architectures": ["LlamaForValue"]}). As a model it is the policy, with values beside.
    """

    def __init__(self, policy, value=None):
        self.policy = policy
        self.value = Linear(policy.config.size("width"), 1) if value is None else value

    config = property(lambda self: self.policy.config)
    shared = property(lambda self: isinstance(self.value, Linear))  # values are a layer over the policy's own hidden states

    def hidden(self, *args, **options):
        return self.policy.hidden(*args, **options)

    def head_weight(self):
        return self.policy.head_weight()

    def head_bias(self):
        return self.policy.head_bias()

    def values(self, tokens, segments, hidden, rng=None):
        """tokens, segments:(B, T), hidden: what the policy has for them -> Tensor (B, T): the return expected at each token."""
        if self.shared:
            return self.value(hidden).reshape(*tokens.shape)
        return self.value(tokens, segments, rng=rng)


def frozen_copy(model):
    """-> a copy of the model with weights of its own, for a reference: no optimizer takes them."""
    twin = copy.deepcopy(model)
    for p in twin.parameters():
        p.requires_grad = False
    return twin


class WithoutAdapters:
    """A policy's reference that costs no memory: its own weights, with its adapters off. What else of it learns would move with it.

    ValueError for a policy without adapters, or whose base learns too: it would be its own reference (trl#495, unsloth-zoo#830).
    """

    def __init__(self, model):
        if not peft.names(model):
            raise ValueError("WithoutAdapters: the model has no adapters: it would be its own reference. Hint: frozen_copy(model)")
        own = {id(p) for a in peft.adapters(model) for p in a.own().values()}
        if moving := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in own]:
            raise ValueError(f"WithoutAdapters: {len(moving)} weights beside the adapters learn, among them {moving[0]}: the reference "
                             "would move with them. Hint: frozen_copy(model), or freeze them")
        self.model = model

    config = property(lambda self: self.model.config)

    def hidden(self, *args, **options):
        with peft.disabled(self.model):
            return self.model.hidden(*args, **options)

    def head_weight(self):
        with peft.disabled(self.model):
            return self.model.head_weight()

    def head_bias(self):
        with peft.disabled(self.model):
            return self.model.head_bias()


def reference_of(policy):
    """-> what a policy that has learned nothing yet is kept near to: WithoutAdapters where it has adapters, else a frozen_copy."""
    return WithoutAdapters(policy) if peft.names(policy) else frozen_copy(policy)


def check_reference(name, policy, reference):
    """ValueError unless the reference reads and predicts the policy's tokens."""
    mine, other = policy.config, reference.config
    if mine.vocab_size != other.vocab_size:
        raise ValueError(f"{name}: the policy has {mine.vocab_size} tokens, its reference {other.vocab_size}. "
                         "Hint: both come from the same model, pyllm.align.frozen_copy(policy) makes one of the other")
    if mine.size("context") > other.size("context"):
        raise ValueError(f"{name}: the policy's context is {mine.size('context')} tokens, the reference's {other.size('context')}")
    if policy is reference:
        raise ValueError(f"{name}: the reference is the policy itself and would move with it. Hint: pyllm.align.frozen_copy(policy)")


def chunks(batch, rows=ROWS):
    """-> (slice of rows, Batch of them, without columns that are padding in all)."""
    for begin in range(0, len(batch.tokens), rows):
        part = slice(begin, min(begin + rows, len(batch.tokens)))
        yield part, trimmed(batch.rows(part))


def trimmed(batch):
    """-> the Batch without the columns at its end that are padding in every row. So are arrays of extra that are as wide."""
    width = batch.tokens.shape[1]
    used = int(np.flatnonzero((batch.segments > 0).any(0))[-1]) + 1 if batch.segments is not None else width
    if used == width or batch.decoder_tokens is not None:
        return batch
    def cut(a):
        return np.ascontiguousarray(a[:, :used]) if a.shape[1:2] == (width,) else a

    return replace(batch, tokens=cut(batch.tokens), targets=cut(batch.targets), segments=cut(batch.segments),
                   extra={name: cut(a) for name, a in batch.extra.items()})


def log_probs(model, batch, temperature=1.0):
    """-> (B, T) float32: log p of each target, nats, 0 where there is none; no tape."""
    found = np.zeros(batch.targets.shape, np.float32)
    with no_grad():
        for part, some in chunks(batch):
            found[part, : some.targets.shape[1]] = token_log_probs(model, some, temperature=temperature).data
    return found


def with_reference(batch, reference):
    """-> the Batch with extra["ref_logp"] (B,): log p of each response under the model `reference`, nats."""
    with no_grad():
        found = np.concatenate([response_log_probs(reference, some).data for _, some in chunks(batch)])
    return replace(batch, extra={**batch.extra, "ref_logp": found})


def kto_kl(policy, reference, batch):
    """The policy's divergence from the reference that KTO compares with: one number, at least 0, nats. Ethayarajh et al. 2024, section 4.1.

    Estimated from each prompt with the response of the row before it: responses of the distribution, but not to that prompt. Take all rows
    of an optimizer step together; ValueError for fewer than 2.
    """
    b, width = batch.tokens.shape
    if b < 2:
        raise ValueError(f"kto_kl: {b} row; expected at least 2, since each prompt takes another row's response")
    first = (batch.targets >= 0).argmax(1)  # the position that draws the response's first token
    answers = [row[row >= 0] for row in batch.targets]
    begins = np.zeros(b, np.int64) if batch.segments is None else (batch.segments > 0).argmax(1)
    prompts = [batch.tokens[i, begins[i] : first[i] + 1] for i in range(b)]
    wide = max(len(p) + len(answers[i - 1]) for i, p in enumerate(prompts))
    tokens, segments, targets = np.zeros((b, wide), np.int32), np.zeros((b, wide), np.int32), np.full((b, wide), IGNORED, np.int32)
    for i, prompt in enumerate(prompts):
        p, n = len(prompt), len(answers[i - 1])
        tokens[i, :p], tokens[i, p : p + n], segments[i, : p + n], targets[i, p - 1 : p + n - 1] = prompt, answers[i - 1], 1, answers[i - 1]
    other = Batch(tokens, targets, segments)
    return max(0.0, float((log_probs(policy, other).sum(1) - log_probs(reference, other).sum(1)).mean(dtype=np.float64)))
