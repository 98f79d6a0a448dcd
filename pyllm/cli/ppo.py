"""pyllm ppo: a model, prompts and a reward -> a policy that PPO has trained, in a run folder, see pyllm.cli.policies."""
from dataclasses import dataclass
from pathlib import Path

from pyllm.align import PPOConfig
from pyllm.cli import policies
from pyllm.cli import run as runs
from pyllm.cli.config import key


@dataclass(frozen=True)
class Model(policies.Model):
    value: str = key("layer", "values: a layer over the policy's own hidden states, or a model that begins as the policy is",
                     choices=("layer", "model"))


ABOUT = {  # key of pyllm.align.PPOConfig: (words, least, most, choices)
    "response_length": ("tokens of a response at most", 1), "stop_after": ("the end token ends a response from this token on", 0),
    "num_ppo_epochs": ("passes over the responses of an iteration", 1),
    "kl_coef": ("penalty of the divergence from the reference, per nat", 0.0),
    "kl_estimator": ("of the penalty", None, None, ("k1", "k3")),
    "target_kl": ("nats a response that kl_coef is steered to; 0 = it is fixed", 0.0),
    "kl_horizon": ("episodes in which a controller that is off by all of it changes by e", 1.0),
    "cliprange": ("how far a ratio may go before it is clipped", 0.0), "cliprange_value": ("the same of values; 0 = never", 0.0),
    "vf_coef": ("weight of the value loss", 0.0), "gamma": ("discount of rewards a token", 0.0, 1.0),
    "lam": ("lambda of generalised advantages", 0.0, 1.0), "whiten_rewards": ("bring rewards to deviation 1",),
    "whiten_advantages": ("over what advantages are brought to mean 0 and deviation 1", None, None, ("batch", "minibatch", "none")),
    "missing_eos_score": ("score of a response without an end token, such as -1; 0 = what the reward says",),
}

SECTIONS = policies.sections(PPOConfig, ABOUT, Model)


def add_arguments(parser):
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return ppo(runs.settings("ppo", args, SECTIONS), Path(args.out), args.resume)


def ppo(config, out, resume=False):
    """Runs a Config of SECTIONS in the folder `out` -> exit code, see pyllm.cli.policies.learn."""
    return policies.learn("ppo", config, PPOConfig, out, resume)
