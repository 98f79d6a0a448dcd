"""One iteration of PPO: 64 responses of 32 tokens, rewards, 4 epochs, on a model of 4 layers and width 256; and its rollout alone.

Peer: transformers and PyTorch doing what TRL's PPOTrainer did, which is not in TRL any more: generate, log-probabilities of policy and
reference, values from a layer on the policy's trunk, 4 epochs of clipped losses in micro-batches of as many rows. Of the rollout beside
it: pyllm's own `generate`, to see what keeping log-probabilities costs.
"""
import itertools
from functools import partial

import numpy as np

import pyllm
from benchmarks.harness import Case, torch_or_none
from pyllm import align, generation, training
from pyllm.models import GPT2, GPT2Config

BATCH, PROMPT, NEW, EPOCHS, MICRO = 64, 16, 32, 4, 32


def cases(quick):
    yield Case("ppo_rollout", f"{BATCH} x {NEW} tokens", build_rollout, unit=BATCH * NEW)
    for precision in ("f32", "bf16"):
        yield Case("ppo_iteration", f"{BATCH} x {NEW} tokens, {EPOCHS} epochs", partial(build, precision), unit=BATCH * NEW,
                   precision=precision)


def model():
    return GPT2(GPT2Config(vocab_size=4096, n_positions=64, n_embd=256, n_layer=4, n_head=4)).initialize(0)


def prompts():
    return np.random.default_rng(0).integers(0, 4096, (BATCH, PROMPT)).tolist()


def reward(drawn):
    """The share of even tokens: costs nothing."""
    return np.array([np.mean(drawn.response(row) % 2 == 0) for row in range(len(drawn.tokens))])


def build_rollout():
    policy, starts = model(), prompts()
    seeds = itertools.count()

    def run():
        return align.rollout(policy, starts, max_tokens=NEW, seed=next(seeds))

    def check():
        drawn = run()
        assert drawn.lengths.tolist() == [NEW] * BATCH and np.array_equal(drawn.logp, align.log_probs(policy, drawn.batch()))

    return run, check, {"generate": lambda: generation.generate(policy, None, starts, max_tokens=NEW)}


def build(precision):
    policy = model()
    actor = align.ActorCritic(policy)
    config = align.PPOConfig(steps=10**9, batch=BATCH, micro_batch=MICRO, response_length=NEW, temperature=1.0, num_ppo_epochs=EPOCHS,
                             lr=1e-5, lr_end=1e-5, patience=0)
    torch = torch_or_none()
    peers = {"torch": peer(torch, policy)} if torch else {}
    iterations = align.ppo(actor, align.frozen_copy(policy), prompts(), reward, training.AdamW(actor, weight_decay=0.0), config)

    def run():
        with pyllm.precision(precision):  # of rollout, reference and updates alike, so that the ratio starts at 1
            return next(iterations)

    def check():
        metrics = run().metrics
        assert metrics["objective/kl"] == 0 and metrics["completions/mean_length"] == NEW and metrics["policy/approxkl_avg"] > 0

    return run, check, peers


def peer(torch, policy):
    """-> a function that runs one iteration in PyTorch, or None where transformers is not installed."""
    try:
        from transformers import GPT2Config as Config
        from transformers import GPT2LMHeadModel
    except ImportError:
        return None
    config = Config(vocab_size=4096, n_positions=64, n_embd=256, n_layer=4, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    torch.manual_seed(0)
    net, reference = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    head = torch.nn.Linear(256, 1)
    optimizer = torch.optim.AdamW([*net.parameters(), *head.parameters()], lr=1e-5, weight_decay=0.0, fused=True)
    starts = torch.tensor(prompts())

    def chosen(logits, tokens):
        return torch.log_softmax(logits, -1).gather(-1, tokens[..., None])[..., 0]

    def forward(rows):
        hidden = net.transformer(rows).last_hidden_state[:, PROMPT - 1 : -1]
        return chosen(net.lm_head(hidden), rows[:, PROMPT:]), head(hidden)[..., 0]

    def run():
        with torch.no_grad():
            rows = net.generate(starts, attention_mask=torch.ones_like(starts), do_sample=True, top_k=0, max_new_tokens=NEW,
                                min_new_tokens=NEW, pad_token_id=0)
            old, values = forward(rows)
            ref = chosen(reference(rows).logits[:, PROMPT - 1 : -1], rows[:, PROMPT:])
            rewards = -0.05 * (old - ref)
            rewards[:, -1] += (rows[:, PROMPT:] % 2 == 0).float().mean(1)
            advantages, last = torch.zeros_like(values), torch.zeros(BATCH)
            for t in reversed(range(NEW)):
                last = rewards[:, t] + (values[:, t + 1] if t + 1 < NEW else 0) - values[:, t] + 0.95 * last
                advantages[:, t] = last
            returns = advantages + values
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(EPOCHS):
            for part in torch.randperm(BATCH).split(MICRO):
                logp, v = forward(rows[part])
                ratio, a = (logp - old[part]).exp(), advantages[part]
                clipped = values[part] + (v - values[part]).clamp(-0.2, 0.2)
                value = torch.maximum((v - returns[part]) ** 2, (clipped - returns[part]) ** 2).mean()
                loss = torch.maximum(-a * ratio, -a * ratio.clamp(0.8, 1.2)).mean() + 0.1 * 0.5 * value
                (loss * len(part) / BATCH).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return run
