"""pyllm grpo: a model, prompts and a reward -> a policy that GRPO or a relative has trained, in a run folder, see pyllm.cli.policies."""
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


def add_arguments(parser):
    from pyllm.align import GRPOConfig

    runs.add_arguments(parser, policies.sections(GRPOConfig, ABOUT))


def run(args):
    from pyllm.align import GRPOConfig

    return policies.run("grpo", args, GRPOConfig, ABOUT)
