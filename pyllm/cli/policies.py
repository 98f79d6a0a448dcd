"""What pyllm ppo and grpo share: prompts, a reward, a policy that learns from its own responses, in a run folder.

    config.resolved.toml   every setting, also the defaults        checkpoints/         whole states, see pyllm.training.checkpoint
    metrics.jsonl          one line an iteration, named as TRL's   samples.jsonl        responses to held-out prompts, before and on the way
    model/                 the policy as it is now                 curves.png           reward, divergence, entropy, lengths
"""
import contextlib
from dataclasses import MISSING, dataclass, fields, make_dataclass
from pathlib import Path

from pyllm import plot
from pyllm.cli.config import key

HELD = 8  # prompts that are never learned from: the samples are of them


@dataclass(frozen=True)
class Model:
    path: str = key("", "the policy to begin with: a model folder, a .gguf file, or a run folder", flags=("model",))
    reward: str = key("", "a run folder of pyllm reward, a folder of such a model, or FILE.py:FUNCTION, which takes the texts of prompt "
                          "and response and gives a number")


@dataclass(frozen=True)
class Data:
    path: str = key("", "prompts: a file of examples, or a folder of them; of other examples the prompts are taken, of texts the first "
                        "words", flags=("data",))
    columns: str = key("", "the names that the files have for keys, such as prompt=question")
    prompt_format: str = key("{prompt}", "what stands around a prompt, such as 'Question: {prompt} Answer:'")
    prompt_tokens: int = key(0, "tokens of a prompt at most, longer ones are left out; of texts the first ones are the prompt, 0 = 8", 0)
    skip_bad_lines: bool = key(False, "count lines that cannot be read, and go on")


@dataclass(frozen=True)
class Run:
    eval_every: int = key(10, "iterations between samples", 1)
    save_every: int = key(10, "iterations between checkpoints", 1)
    keep: int = key(2, "newest checkpoints that are kept", 1)
    precision: str = key("f32", "of the products' operands, in drawing and in learning", choices=("f32", "bf16"))
    weight_decay: float = key(0.0, "AdamW's decay of matrices, times the learning rate", 0.0)
    beta2: float = key(0.999, "AdamW's decay of the second moment, a step", 0.0, 1.0)
    eps: float = key(1e-5, "AdamW's addend in the denominator", 0.0)


def section(config, about):
    """-> a dataclass of keys for the command line, with the fields and defaults of a dataclass of pyllm.align. about: {name: words}."""
    made = []
    for f in fields(config):
        if f.name in about:
            words, *limits = about[f.name]
            kind = f.type if isinstance(f.type, type) else float
            default = f.default if f.default is not MISSING else f.default_factory()
            made.append((f.name, kind, key(kind(default or 0) if kind is float else default, words, *limits)))
    return make_dataclass(config.__name__, made, frozen=True)


def settings(verb, args, sections):
    """-> the Config of the flags; ConfigError where the model, the data or the reward are missing."""
    from pyllm.cli import run as runs
    from pyllm.errors import ConfigError

    config = runs.settings(verb, args, sections)
    if not config.model.reward:
        raise ConfigError(f"{verb}: no reward; expected --reward RUN of pyllm reward, or --reward FILE.py:FUNCTION")
    return config


def open_reward(path, tokenizer):
    """-> the reward that `path` names: a RewardModel, or a rule."""
    from pyllm.align import RewardModel, rule
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError

    file, colon, name = path.rpartition(":")
    if colon and file.endswith(".py"):
        import runpy

        if not Path(file).is_file():
            raise ConfigError(f"model.reward={path!r}: there is no {file}")
        found = runpy.run_path(file)
        if not callable(found.get(name)):
            raise ConfigError(f"model.reward={path!r}: {file} has no function {name}")
        return rule(found[name], tokenizer)
    model, other = open_model(path)
    if other.vocab_size != tokenizer.vocab_size or other.encode("one two") != tokenizer.encode("one two"):
        raise ConfigError(f"model.reward={path!r}: its tokenizer is not the policy's; expected a reward model trained from the same model")
    return RewardModel(model)


def read_prompts(d, tokenizer, room):
    """-> lists of token ids, each at most `room` long and once; ConfigError where none is left."""
    from pyllm.data import read_examples
    from pyllm.cli.sft import read
    from pyllm.data.render import render, rows_of
    from pyllm.errors import ConfigError, FormatError

    found, dropped = {}, 0
    longest = min(room, d.prompt_tokens or room)
    try:
        examples = read(d)["train"]
        for example in examples:
            row = rows_of([render(example, examples.kind, tokenizer, prompt_format=d.prompt_format)])[0]
            if examples.kind == "text":
                ids = row.tokens[: d.prompt_tokens or 8].tolist()
            else:
                ids = row.tokens[: int(row.learned.argmax()) if row.learned.any() else len(row)].tolist()
            if 0 < len(ids) <= longest:
                found[tuple(ids)] = ids
            else:
                dropped += 1
    except FormatError as error:
        raise ConfigError(f"data: {error}") from None
    print(f"prompts    {len(found):,}" + (f"; {dropped:,} left out: empty, or longer than {longest} tokens" if dropped else ""))
    if len(found) < 2:
        raise ConfigError(f"data: {len(found)} prompts are left, each of at most {longest} tokens beside the response; expected at least "
                          "2. Hint: shorter responses")
    return list(found.values())


def learn(verb, config, c, out, resume, until, begin, response):
    """Runs the iterations -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved.

    c: the settings of pyllm.align. begin: (policy, reference, prompts, reward, optimizer, iterations done, what the checkpoint kept, ids
    that end a response, vocabulary) -> iterator of Iteration. response: tokens of a response at most.
    """
    from pyllm import folders, training
    from pyllm.align import ActorCritic, frozen_copy, rollout
    from pyllm.autograd import precision
    from pyllm.cli import run as runs
    from pyllm.cli.interrupt import Interrupt
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError
    from pyllm.generation.generate import end_ids
    from pyllm.io.files import write_toml
    from pyllm.models.base import CausalLM
    from pyllm.progress import Progress

    out, r = Path(out), config.run
    checkpoint = runs.newest(verb, out, resume)
    model, tokenizer = open_model(config.model.path)
    if not isinstance(model, CausalLM):
        raise ConfigError(f"{verb}: {config.model.path} is a {type(model).__name__}; expected a language model that continues a text")
    reward = open_reward(config.model.reward, tokenizer)
    prompts = read_prompts(config.data, tokenizer, model.config.size("context") - response)
    held, prompts = prompts[: min(HELD, len(prompts) // 2)], prompts[min(HELD, len(prompts) // 2) :]
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / "config.resolved.toml", config.table())
    print(f"model      {type(model).__name__}, {model.config.model_type}, {model.num_parameters():,} parameters", flush=True)
    reference, trained = frozen_copy(model), ActorCritic(model) if verb == "ppo" else model
    optimizer = training.AdamW(trained, betas=(0.9, r.beta2), eps=r.eps, weight_decay=r.weight_decay)
    state = Beside(optimizer, trained.value if verb == "ppo" else None)
    start, kept = 0, {}
    if checkpoint:
        start, kept = training.load_checkpoint(checkpoint, model, state)
        print(f"resumed    {checkpoint}, iteration {start}", flush=True)
    stop = end_ids(model, tokenizer)
    vocabulary = tokenizer.vocab_size if tokenizer.vocab_size < model.config.vocab_size else None

    def sample(step):
        drawn = rollout(model, held, max_tokens=response, temperature=c.temperature, stop=stop, seed=c.seed, vocabulary=vocabulary)
        scores = reward(drawn)
        scores = scores if scores.ndim == 1 else scores.sum(1)
        samples.write(step=step, samples=[{"prompt": tokenizer.decode(drawn.prompt(i).tolist()), "score": float(scores[i]),
                                           "text": tokenizer.decode(drawn.response(i).tolist())} for i in range(len(held))])
        return float(scores.mean())

    iterations = begin(trained, reference, prompts, reward, optimizer, start, kept, stop, vocabulary)
    with (Interrupt() as stopping, Progress(c.steps, verb, "iteration", start) as bar, precision(r.precision),
          contextlib.closing(training.Log(out / "metrics.jsonl", start)) as metrics,
          contextlib.closing(training.Log(out / "samples.jsonl", start)) as samples):
        if not start:
            print(f"before     score {sample(0):.3f} on {len(held)} held-out prompts", flush=True)
        for it in iterations:
            step, last, m = it.step, it.step == c.steps, it.metrics
            metrics.write(step=step, **m, **{f"seconds/{name}": value for name, value in it.seconds.items()})
            score, kl = m.get("objective/scores", m.get("reward")), m["objective/kl"]
            bar.update()
            bar.note(score=f"{score:.3f}", KL=f"{kl:.2f}")
            if step % r.eval_every == 0 or last:
                bar.line(f"iteration {step:<5} score {score:.3f}  KL {kl:.3f}  length {m['completions/mean_length']:.1f}  held out "
                         f"{sample(step):.3f}  {m['eps']:.1f} responses/s")
            if step % r.save_every == 0 or last or stopping.signal or step == until:
                folders.save(model, tokenizer, out / "model")
                training.save_checkpoint(out / "checkpoints", step, model, tokenizer, state, {"seed": c.seed, **controller(verb, c, m)},
                                         keep=r.keep)
            if (stopping.signal or step == until) and not last:
                bar.line(f"stopped at iteration {step}; all is saved, --resume goes on")
                return stopping.code
    chart(out, verb)
    table(out)
    print(f"model      {out / 'model'}", flush=True)
    return 0


class Beside:
    """An optimizer whose state holds the value function too: the checkpoint's model is the policy alone."""

    def __init__(self, optimizer, value):
        self.optimizer, self.value = optimizer, value

    def state(self):
        return {**self.optimizer.state(), **({f"value.{n}": a for n, a in self.value.state().items()} if self.value else {})}

    def load_state(self, tensors):
        own = {n.removeprefix("value."): a for n, a in tensors.items() if n.startswith("value.")}
        self.optimizer.load_state({n: a for n, a in tensors.items() if not n.startswith("value.")})
        if self.value:
            self.value.load(own)


def controller(verb, c, m):
    """-> the coefficient of the divergence for the next iteration, of PPO."""
    from pyllm.align.ppo import adapted

    if verb != "ppo":
        return {}
    return {"kl_coef": float(adapted(m["objective/kl_coef"], m["objective/kl_k1"], c)) if c.target_kl else m["objective/kl_coef"]}


def table(out):
    """Prints the held-out responses before and after, side by side."""
    from pyllm.training import read_log

    lines = read_log(out / "samples.jsonl")
    for before, after in zip(lines[0]["samples"][:3], lines[-1]["samples"]):
        print(f"prompt     {before['prompt']!r}\n  before   {before['score']:+.2f}  {before['text']!r}\n"
              f"  after    {after['score']:+.2f}  {after['text']!r}")


CURVES = {"reward": ("objective/scores", "reward"), "KL, nats a response": ("objective/kl",),
          "entropy, nats a token": ("policy/entropy_avg", "entropy"), "tokens a response": ("completions/mean_length",)}


def chart(out, verb):
    """Writes curves.png from metrics.jsonl, where matplotlib is installed."""
    from pyllm.training import read_log

    if (pyplot := plot.pyplot("curves.png")) is None:
        return
    lines = read_log(out / "metrics.jsonl")
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), layout="constrained", sharex=True)
    for ax, (label, names) in zip(axes.flat, CURVES.items()):
        points = [(line["step"], line[name]) for line in lines for name in names if name in line]
        ax.plot(*zip(*points))
        ax.set(ylabel=label)
        ax.grid(alpha=0.3)
    axes[1, 0].set(xlabel="iteration")
    axes[1, 1].set(xlabel="iteration")
    figure.suptitle(f"{verb}: {out.name}")
    figure.savefig(out / "curves.png", dpi=120)
    pyplot.close(figure)
