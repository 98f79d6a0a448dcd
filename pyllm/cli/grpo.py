"""pyllm grpo: a model, prompts and a reward -> a policy that GRPO or a relative has trained, in a run folder, see pyllm.cli.policies."""
from pathlib import Path

from pyllm.align import GRPOConfig
from pyllm.cli import policies
from pyllm.cli import run as runs

ABOUT = {  # key of pyllm.align.GRPOConfig: (words, least, most, choices)
    "algorithm": ("what differs: advantages, the loss's mean, where the divergence goes", None, None,
                  ("grpo", "dr_grpo", "dapo", "rloo", "reinforce++")),
    "num_generations": ("responses to each prompt", 2), "max_completion_length": ("tokens of a response at most", 1),
    "num_iterations": ("passes over the responses of an iteration", 1),
    "beta": ("weight of the divergence from the reference; 0 = none", 0.0),
    "epsilon": ("how far a ratio may fall before it is clipped", 0.0),
    "epsilon_high": ("how far it may rise; 0 = as far as it may fall", 0.0),
    "mask_truncated_completions": ("responses without an end token count for nothing",),
    "filter_equal": ("prompts whose responses all have the same score count for nothing",),
}

SECTIONS = policies.sections(GRPOConfig, ABOUT)


def add_arguments(parser):
    runs.add_arguments(parser, SECTIONS)


def run(args):
    return grpo(runs.settings("grpo", args, SECTIONS), Path(args.out), args.resume)


def grpo(config, out, resume=False):
    """Runs a Config of SECTIONS in the folder `out` -> exit code, see pyllm.cli.policies.learn."""
    return policies.learn("grpo", config, GRPOConfig, out, resume)
