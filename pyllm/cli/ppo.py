"""pyllm ppo: a model, prompts and a reward -> a policy that PPO has trained, in a run folder, see pyllm.cli.policies."""
from pathlib import Path

from pyllm.cli import policies
from pyllm.cli import run as runs

ABOUT = {  # key of pyllm.align.PPOConfig: (words, least, most, choices)
    "steps": ("iterations, each a rollout and its updates", 1), "batch": ("prompts an iteration", 1),
    "micro_batch": ("responses of a forward and backward", 1), "response_length": ("tokens of a response at most", 1),
    "stop_after": ("the end token ends a response from this token on", 0), "temperature": ("of policy and reference", 0.0),
    "num_ppo_epochs": ("passes over the responses of an iteration", 1), "num_mini_batches": ("optimizer steps of a pass", 1),
    "lr": ("learning rate of the first iteration", 0.0), "lr_end": ("learning rate that it falls to, in a line", 0.0),
    "max_grad_norm": ("largest norm of the gradient; 0 = no clipping", 0.0),
    "kl_coef": ("penalty of the divergence from the reference, per nat", 0.0),
    "kl_estimator": ("of the penalty", None, None, ("k1", "k3")),
    "target_kl": ("nats a response that kl_coef is steered to; 0 = it is fixed", 0.0),
    "kl_horizon": ("episodes in which a controller that is off by all of it changes by e", 1.0),
    "cliprange": ("how far a ratio may go before it is clipped", 0.0), "cliprange_value": ("the same of values; 0 = never", 0.0),
    "vf_coef": ("weight of the value loss", 0.0), "entropy_coef": ("weight of the bonus for entropy", 0.0),
    "gamma": ("discount of rewards a token", 0.0, 1.0), "lam": ("lambda of generalised advantages", 0.0, 1.0),
    "whiten_rewards": ("bring rewards to deviation 1",),
    "whiten_advantages": ("over what advantages are brought to mean 0 and deviation 1", None, None, ("batch", "minibatch", "none")),
    "missing_eos_penalty": ("taken from the score of a response without an end token", 0.0),
    "patience": ("iterations with one score for all responses before the run stops; 0 = never", 0),
    "seed": ("of prompts, responses and the order of updates", 0),
}


def sections():
    from pyllm.align import PPOConfig

    return {"model": policies.Model, "data": policies.Data, "train": policies.section(PPOConfig, ABOUT), "run": policies.Run}


def add_arguments(parser):
    runs.add_arguments(parser, sections())


def run(args):
    return ppo(policies.settings("ppo", args, sections()), args.out, args.resume)


def ppo(config, out, resume=False, until=None):
    """Runs a Config of sections() in the folder `out` -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved.

    A run that is ended anywhere goes on from its newest checkpoint with the bits of one that never stopped.
    """
    from dataclasses import asdict

    from pyllm.align import PPOConfig
    from pyllm.align import ppo as iterations

    c = PPOConfig(**asdict(config.train))

    def begin(actor, reference, prompts, reward, optimizer, start, kept, stop, vocabulary):
        return iterations(actor, reference, prompts, reward, optimizer, c, stop=stop, start=start, kl_coef=kept.get("kl_coef"),
                          vocabulary=vocabulary)

    return policies.learn("ppo", config, c, Path(out), resume, until, begin, c.response_length)
