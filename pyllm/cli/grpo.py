"""pyllm grpo: a model, prompts and a reward -> a policy that GRPO or a relative has trained, in a run folder, see pyllm.cli.policies."""
from pathlib import Path

from pyllm.cli import policies
from pyllm.cli import run as runs

ABOUT = {  # key of pyllm.align.GRPOConfig: (words, least, most, choices)
    "algorithm": ("what differs: advantages, the loss's mean, where the divergence goes", None, None,
                  ("grpo", "dr_grpo", "dapo", "rloo", "reinforce++")),
    "steps": ("iterations, each a rollout and its updates", 1), "batch": ("prompts an iteration", 1),
    "num_generations": ("responses to each prompt", 2), "micro_batch": ("responses of a forward and backward", 1),
    "max_completion_length": ("tokens of a response at most", 1), "temperature": ("of policy and reference", 0.0),
    "num_iterations": ("passes over the responses of an iteration", 1), "num_mini_batches": ("optimizer steps of a pass", 1),
    "lr": ("learning rate of the first iteration", 0.0), "lr_end": ("learning rate that it falls to, in a line", 0.0),
    "max_grad_norm": ("largest norm of the gradient; 0 = no clipping", 0.0),
    "beta": ("weight of the divergence from the reference; 0 = none", 0.0),
    "epsilon": ("how far a ratio may fall before it is clipped", 0.0),
    "epsilon_high": ("how far it may rise; 0 = as far as it may fall", 0.0), "entropy_coef": ("weight of the bonus for entropy", 0.0),
    "mask_truncated_completions": ("responses without an end token count for nothing",),
    "filter_equal": ("prompts whose responses all have the same score count for nothing",),
    "missing_eos_penalty": ("taken from the score of a response without an end token", 0.0),
    "patience": ("iterations with one score for all responses before the run stops; 0 = never", 0),
    "seed": ("of prompts, responses and the order of updates", 0),
}


def sections():
    from pyllm.align import GRPOConfig

    return {"model": policies.Model, "data": policies.Data, "train": policies.section(GRPOConfig, ABOUT), "run": policies.Run}


def add_arguments(parser):
    runs.add_arguments(parser, sections())


def run(args):
    return grpo(policies.settings("grpo", args, sections()), args.out, args.resume)


def grpo(config, out, resume=False, until=None):
    """Runs a Config of sections() in the folder `out` -> exit code; the rest as pyllm.cli.ppo.ppo."""
    from dataclasses import asdict

    from pyllm.align import GRPOConfig
    from pyllm.align import grpo as iterations

    c = GRPOConfig(**{**asdict(config.train), "epsilon_high": config.train.epsilon_high or None})

    def begin(policy, reference, prompts, reward, optimizer, start, kept, stop, vocabulary):
        return iterations(policy, reference if c.beta else None, prompts, reward, optimizer, c, stop=stop, start=start,
                          vocabulary=vocabulary)

    return policies.learn("grpo", config, c, Path(out), resume, until, begin, c.max_completion_length)
