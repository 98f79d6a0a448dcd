"""A small policy, prompts and rewards that the tests of alignment share."""
import numpy as np

from pyllm.align import ActorCritic, PPOConfig, frozen_copy, ppo
from pyllm.models import GPT2, GPT2Config
from pyllm.training import AdamW

V = 19


def policy(seed=0, **sizes):
    return GPT2(GPT2Config(**{"vocab_size": V, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3,
                              **sizes})).initialize(seed)


def prompts(count=10):
    return [np.random.default_rng(i).integers(1, V, 2 + i % 4).tolist() for i in range(count)]


def likes_three(drawn):
    """Scores (B,): the share of token 3 in each response."""
    return np.array([np.mean(drawn.response(row, end=True) == 3) for row in range(len(drawn.tokens))])


def settings(**options):
    return PPOConfig(**{"steps": 3, "batch": 8, "micro_batch": 3, "response_length": 6, "temperature": 0.8, "num_ppo_epochs": 2,
                        "num_mini_batches": 2, "lr": 3e-3, "lr_end": 3e-3, **options})


def run(config=settings(), reward=likes_three, stop=(0,), model=None, reference=None, actor=None, optimizer=None, **options):
    """-> (actor, optimizer, its iterations)."""
    model = model or policy()
    actor = actor or ActorCritic(model)
    optimizer = optimizer or AdamW(actor, weight_decay=0)
    found = list(ppo(actor, reference or frozen_copy(model), prompts(), reward, optimizer, config, stop=stop, **options))
    return actor, optimizer, found


def bits(model):
    return {name: a.tobytes() for name, a in model.state().items()}
