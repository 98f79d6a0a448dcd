"""One iteration of PPO: 64 responses of 32 tokens, rewards, 4 epochs, on a model of 4 layers and width 256; and its rollout alone.

Peer: a loop in transformers and PyTorch: generate, log-probabilities of policy and reference, values from a layer on the policy's trunk, 4
epochs of clipped losses in micro-batches of as many rows. Of the rollout beside it: pyllm's own `generate`, to see what keeping
log-probabilities costs. ppo_models has what TRL's PPOTrainer wants, a model for values and one for rewards, both of the policy's size;
its peer is that trainer, where TRL has it (1.4: trl.experimental.ppo).
"""
import contextlib
import io
import itertools
import tempfile
from functools import partial

import numpy as np

import pyllm
from benchmarks.harness import Case, torch_or_none
from pyllm import align, generation, training
from pyllm.folders import build as build_model
from pyllm.models import GPT2, GPT2Config

BATCH, PROMPT, NEW, EPOCHS, MICRO = 64, 16, 32, 4, 32


def cases(quick):
    yield Case("ppo_rollout", f"{BATCH} x {NEW} tokens", build_rollout, unit=BATCH * NEW)
    for precision in ("f32", "bf16"):
        for name, models in (("ppo_iteration", False), ("ppo_models", True)):
            yield Case(name, f"{BATCH} x {NEW} tokens, {EPOCHS} epochs", partial(build, precision, models), unit=BATCH * NEW,
                       precision=precision)


SIZES = dict(vocab_size=4096, n_positions=64, n_embd=256, n_layer=4, n_head=4)


def model():
    return GPT2(GPT2Config(**SIZES)).initialize(0)


def head(name):
    """-> a model of the same size with another head and one output."""
    return build_model({"model_type": "gpt2", **SIZES, "architectures": [name], "num_labels": 1}, seed=1)


def prompts():
    return np.random.default_rng(0).integers(1, 4096, (BATCH, PROMPT)).tolist()


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


def build(precision, models):
    policy = model()
    actor = align.ActorCritic(policy, head("GPT2ForValue") if models else None)
    score = align.RewardModel(head("GPT2ForSequenceClassification")) if models else reward
    config = align.PPOConfig(steps=10**9, batch=BATCH, micro_batch=MICRO, response_length=NEW, temperature=1.0, num_ppo_epochs=EPOCHS,
                             lr=1e-5, lr_end=1e-5, patience=0)
    torch = torch_or_none()
    peers = {} if torch is None else {"trl": trl_peer(precision)} if models else {"torch": peer(torch, policy)}
    iterations = align.ppo(actor, align.frozen_copy(policy), prompts(), score, training.AdamW(actor, weight_decay=0.0), config)

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


def trl_peer(precision):
    """-> a function that runs one iteration of TRL's PPOTrainer, or None where TRL has none."""
    try:
        from datasets import Dataset
        from tokenizers import Tokenizer
        from tokenizers.models import WordLevel
        from transformers import GPT2Config as Config
        from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError:
        return None
    config = Config(**SIZES, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=None, eos_token_id=None, pad_token_id=0, num_labels=1)
    words = Tokenizer(WordLevel({str(i): i for i in range(4096)}, unk_token="0"))
    data = Dataset.from_dict({"input_ids": prompts()})
    trainer = PPOTrainer(
        PPOConfig(tempfile.mkdtemp(), per_device_train_batch_size=MICRO, gradient_accumulation_steps=BATCH // MICRO, total_episodes=BATCH,
                  num_mini_batches=1, num_ppo_epochs=EPOCHS, response_length=NEW, temperature=1.0, learning_rate=1e-5,
                  local_rollout_forward_batch_size=BATCH, num_sample_generations=0, gradient_checkpointing=False, bf16=precision == "bf16",
                  use_cpu=True, optim="adamw_torch_fused", report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True),
        PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1"), GPT2LMHeadModel(config), GPT2LMHeadModel(config),
        GPT2ForSequenceClassification(config), data, GPT2ForSequenceClassification(config), eval_dataset=data)

    def run():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its metrics
            trainer.train()

    return run
