"""What pyllm ppo and grpo share: prompts, a reward, a policy that learns from its own responses, in a run folder.

    config.resolved.toml   every setting, also the defaults        checkpoints/         whole states, see pyllm.training.checkpoint
    metrics.jsonl          one line an iteration, named as TRL's   samples.jsonl        responses to held-out prompts, before and on the way
    model/ or adapter/     the policy as it is now                 curves.png           reward, divergence, entropy, lengths
"""
import contextlib
from dataclasses import asdict, dataclass, fields, make_dataclass, replace
from pathlib import Path

from pyllm import plot
from pyllm.cli import run as runs
from pyllm.cli.adapters import Peft, adapt, rated
from pyllm.cli.config import key

HELD = 8  # prompts that are never learned from: the samples are of them


@dataclass(frozen=True)
class Model:
    path: str = key("", "the policy to begin with: a model folder, a .gguf file, or a run folder", flags=("model",))
    reward: str = key("", "a run folder of pyllm reward, a folder of such a model, FOLDER:LABEL of any classifier, whose log odds of the "
                          "label count, or FILE.py:FUNCTION, which takes the texts of prompt and response and gives a number")
    step: str = key("", "a text that ends a step, such as a line's end: every step is then rewarded, not the whole response alone")


@dataclass(frozen=True)
class Data:
    stop: str = key("", "a text of one token, such as '.', that ends a response as the end token does")
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
    tensorflow: bool = key(False, "add it as TensorFlow's Adam does, which makes first steps smaller", flags=("tensorflow-eps",))


ABOUT = {  # key of PPOConfig and of GRPOConfig: (words, least, most, choices)
    "steps": ("iterations, each a rollout and its updates", 1), "batch": ("prompts an iteration", 1),
    "micro_batch": ("responses of a forward and backward", 1), "temperature": ("of policy and reference", 0.0),
    "num_mini_batches": ("optimizer steps of a pass", 1), "lr": ("learning rate of the first iteration", 0.0),
    "lr_end": ("learning rate that it falls to, in a line", 0.0),
    "max_grad_norm": ("largest norm of the gradient; 0 = no clipping", 0.0), "entropy_coef": ("weight of the bonus for entropy", 0.0),
    "missing_eos_penalty": ("taken from the score of a response without an end token", 0.0),
    "patience": ("iterations with one score for all responses before the run stops; 0 = never", 0),
    "seed": ("of prompts, responses, the order of updates and a new adapter", 0),
}


def sections(config, about, model=Model):
    """-> the sections of a verb. config: a dataclass of pyllm.align, about: as ABOUT, of the keys that are its own."""
    made, about = [], ABOUT | about
    for f in fields(config):
        if f.name in about:
            words, *limits = about[f.name]
            kind = f.type if isinstance(f.type, type) else float  # float or None, which stands as 0
            default = kind(f.default or 0) if kind is float else f.default
            if f.name == "lr":
                words += f"; 0 = {default:g}, of LoRA {10 * default:g}, of other adapters as much more as in sft"
                rate, default = default, 0.0
            made.append((f.name, kind, key(default, words, *limits)))
    train = make_dataclass(config.__name__, made, frozen=True, namespace={"ALL": rate})
    return {"model": model, "data": Data, "train": train, "peft": Peft, "run": Run}


def open_reward(path, tokenizer, step=""):
    """-> (the reward that `path` names, a function of a Rollout: a RewardModel, or a rule, with `step` at the end of each step; how many
    tokens it reads at most, None = any number)."""
    from pyllm.align import RewardModel, rule, step_ends
    from pyllm.cli.generate import opened
    from pyllm.cli.sft import architecture
    from pyllm.errors import ConfigError

    file, colon, name = path.rpartition(":")
    if colon and file.endswith(".py"):
        import runpy

        if not Path(file).is_file():
            raise ConfigError(f"model.reward={path!r}: there is no {file}")
        found = runpy.run_path(file)
        if not callable(found.get(name)):
            raise ConfigError(f"model.reward={path!r}: {file} has no function {name}")
        return rule(found[name], tokenizer, step), None
    path, label = (file, name) if colon and not Path(path).exists() else (path, None)
    model, other = opened(path)
    same = architecture(model) == "decoder" and other.vocab_size == tokenizer.vocab_size and \
        all(other.encode(text) == tokenizer.encode(text) for text in ("one two", "three, 4!\n"))
    if not same:
        print(f"reward     {path} reads texts, with a tokenizer of its own", flush=True)
    reward = RewardModel(model, label, None if same else (tokenizer, other))
    if step and not same:
        raise ConfigError(f"model.step={step!r}: {path} reads whole texts; expected a decoder with the policy's tokenizer")
    each = (lambda drawn: reward.at(drawn, step_ends(drawn, tokenizer, step))) if step else reward
    return each, model.config.size("context") if same else None


def read_prompts(d, tokenizer, room):
    """-> lists of token ids, each at most `room` long and once; ConfigError where none is left."""
    from pyllm.cli.sft import read
    from pyllm.data.render import render, rows_of
    from pyllm.errors import ConfigError, FormatError

    found, dropped = {}, 0
    longest = max(0, min(room, d.prompt_tokens or room))
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
                          "2. Hint: shorter responses: --response-length of ppo, --max-completion-length of grpo")
    return list(found.values())


def learn(verb, config, kind, out, resume=False):
    """Runs the iterations -> exit code: 0, or 130 and 143 after Ctrl-C and SIGTERM, with all saved. kind: PPOConfig or GRPOConfig.

    A run that is ended anywhere goes on from its newest checkpoint with the bits of one that never stopped.
    """
    from pyllm import align, peft, training
    from pyllm.autograd import precision
    from pyllm.cli.interrupt import Interrupt
    from pyllm.cli.sft import open_model
    from pyllm.errors import ConfigError
    from pyllm.generation.generate import end_ids
    from pyllm.io.files import write_toml
    from pyllm.models.base import CausalLM
    from pyllm.nn import quantize
    from pyllm.progress import Progress

    if not config.model.reward:
        raise ConfigError(f"{verb}: no reward; expected --reward RUN of pyllm reward, or --reward FILE.py:FUNCTION")
    config.train = rated(config.train, config.peft)
    optional = {f.name for f in fields(kind) if f.default is None}
    c = kind(**{name: value for name, value in asdict(config.train).items() if value or name not in optional})
    r, ppo = config.run, verb == "ppo"
    response = c.response_length if ppo else c.max_completion_length
    if config.peft.method == "adalora":
        raise ConfigError(f"{verb}: peft.method=adalora hands out ranks by the steps of a training run; expected another method")
    checkpoint = runs.newest(verb, out, resume)
    model, tokenizer = open_model(config.model.path, packed=config.model.path.endswith(".gguf") and config.peft.base != "f32")
    if not isinstance(model, CausalLM):
        raise ConfigError(f"{verb}: {config.model.path} is a {type(model).__name__}; expected a language model that continues a text")
    stop = tokenizer.encode(config.data.stop, template=False)
    if len(stop) > 1:
        raise ConfigError(f"data.stop={config.data.stop!r}: these are {len(stop)} tokens of the model; expected one")
    reward, readable = open_reward(config.model.reward, tokenizer, config.model.step)
    context = model.config.size("context")
    prompts = read_prompts(config.data, tokenizer, min(context, readable or context) - response)
    held, prompts = prompts[: min(HELD, len(prompts) // 2)], prompts[min(HELD, len(prompts) // 2) :]
    out.mkdir(parents=True, exist_ok=True)
    write_toml(out / "config.resolved.toml", config.table())
    print(f"model      {type(model).__name__}, {model.config.model_type}, {model.num_parameters():,} parameters\n"
          f"steps      {c.steps} iterations of {c.batch} prompts; learning rate {c.lr:g}", flush=True)
    value = None
    if ppo and config.model.value == "model":
        value, *_ = training.transfer(quantize(align.frozen_copy(model), "f32"), "value", seed=c.seed)
        print(f"values     a model of {value.num_parameters():,} parameters, all of which learn", flush=True)
    adapt(model, config.peft, c.seed)
    c = replace(c, starts_at_reference=all(a.method.EXACT for a in peft.adapters(model)))
    reference = align.reference_of(model) if ppo or c.beta else None
    trained = align.ActorCritic(model, value) if ppo else model
    optimizer = training.AdamW(trained, betas=(0.9, r.beta2), eps=r.eps, weight_decay=r.weight_decay, rates=peft.rates(model),
                               tensorflow=r.tensorflow)
    state = Beside(optimizer, trained.value if ppo else None)
    start, goes_on = 0, {}
    if checkpoint:
        start, kept = training.load_checkpoint(checkpoint, model, state)
        goes_on = {name: kept[name] for name in ("kl_coef",) if name in kept}
        print(f"resumed    {checkpoint}, iteration {start}", flush=True)
    drawing = {"stop": {*end_ids(model, tokenizer), *stop}, "vocabulary": tokenizer.vocab_size
               if tokenizer.vocab_size < model.config.vocab_size else None}

    def sample(step):
        drawn = align.rollout(model, held, max_tokens=response, temperature=c.temperature, seed=c.seed, **drawing)
        scores = reward(drawn)
        scores = scores if scores.ndim == 1 else scores.sum(1)
        samples.write(step=step, samples=[{"prompt": tokenizer.decode(drawn.prompt(i).tolist()), "score": float(scores[i]),
                                           "text": tokenizer.decode(drawn.response(i).tolist())} for i in range(len(held))])
        return float(scores.mean())

    method = align.ppo if ppo else align.grpo
    iterations = method(trained, reference, prompts, reward, optimizer, c, start=start, **drawing, **goes_on)
    with (Interrupt() as stopping, Progress(c.steps, verb, "iteration", start) as bar, precision(r.precision),
          contextlib.closing(training.Log(out / "metrics.jsonl", start)) as metrics,
          contextlib.closing(training.Log(out / "samples.jsonl", start)) as samples):
        if not start:
            print(f"before     score {sample(0):.3f} on {len(held)} held-out prompts", flush=True)
        for it in iterations:
            step, last, m = it.step, it.step == c.steps, it.metrics
            metrics.write(step=step, **m, **{f"seconds/{name}": value for name, value in it.seconds.items()})
            score = m.get("objective/scores", m.get("reward"))
            shown = {"score": f"{score:.3f}", **({"KL": f"{m[KL]:.3f}"} if KL in m else {})}
            bar.update()
            bar.note(**shown)
            if step % r.eval_every == 0 or last:
                words = "  ".join(f"{name} {value}" for name, value in shown.items())
                bar.line(f"iteration {step:<5} {words}  length {m['completions/mean_length']:.1f}  held out {sample(step):.3f}  "
                         f"{m['eps']:.1f} responses/s")
            if step % r.save_every == 0 or last or stopping.signal:
                runs.save(model, tokenizer, out, config.model.path)
                training.save_checkpoint(out / "checkpoints", step, model, tokenizer, state,
                                         {"seed": c.seed, **(next_coefficient(m, c) if ppo else {})}, keep=r.keep)
            if stopping.signal and not last:
                bar.line(f"stopped at iteration {step}; all is saved, --resume goes on")
                return stopping.code
    chart(out, verb)
    table(out)
    print(runs.saved(model, out, config.model.path), flush=True)
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


def next_coefficient(m, c):
    """-> {"kl_coef": PPO's penalty of the divergence in the iteration that follows one of metrics m}."""
    from pyllm.align.ppo import adapted

    return {"kl_coef": float(adapted(m["objective/kl_coef"], m["objective/kl_k1"], c))}


def table(out):
    """Prints the held-out responses before and after, side by side."""
    from pyllm.training import read_log

    lines = read_log(out / "samples.jsonl")
    scored = lambda sample: f"{sample['score']:+.2f}  {sample['text']!r}"  # noqa: E731
    runs.table([(before["prompt"], scored(before), scored(after))
                for before, after in zip(lines[0]["samples"][:3], lines[-1]["samples"])])


KL = "objective/kl_k3"  # which is never below 0, so a person can read it; objective/kl is what the penalty takes, k1 mostly
CURVES = {"reward": ("objective/scores", "reward"), "KL, nats a response": (KL,),
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
        ax.set(ylabel=label if points else f"{label.partition(',')[0]}: no reference to measure it from")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.grid(alpha=0.3)
    axes[1, 0].set(xlabel="iteration")
    axes[1, 1].set(xlabel="iteration")
    figure.suptitle(f"{verb}: {out.name}")
    figure.savefig(out / "curves.png", dpi=120)
    pyplot.close(figure)
