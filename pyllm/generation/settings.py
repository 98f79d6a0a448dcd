"""How a call generates: what the caller says, else what the model's generation_config.json says, else pyllm's defaults."""
import warnings
from dataclasses import dataclass, fields
from numbers import Integral, Real

from pyllm.errors import ConfigError, suggest
from pyllm.generation.sampling import Sampling
from pyllm.models.base import CausalLM
from pyllm.models.seq2seq import EncoderDecoder


@dataclass(frozen=True)
class Beams:
    """Beam search: keeps the `num_beams` likeliest texts, or with a temperature, top_k, top_p or min_p draws them. 1: no search."""

    num_beams: int = 1
    length_penalty: float = 1.0  # a finished text is scored by the sum of log p over its tokens ** this
    early_stopping: bool | str = False  # True: at num_beams finished texts; False: when better ones are unlikely; "never": impossible
    num_return_sequences: int = 1  # continuations of each prompt: the best of the search, without it independent draws

    def __post_init__(self):
        wrong = [f"{name}={value!r}, expected {words}" for name, right, words in (
            ("num_beams", lambda x: isinstance(x, Integral) and x >= 1, "a whole number of at least 1"),
            ("length_penalty", lambda x: isinstance(x, Real) and abs(x) < float("inf"), "a number"),
            ("early_stopping", lambda x: isinstance(x, bool) or x == "never", "True, False or 'never'"),
            ("num_return_sequences", lambda x: isinstance(x, Integral) and x >= 1, "a whole number of at least 1"),
        ) if not right(value := getattr(self, name))]
        if not wrong and 1 < self.num_beams < self.num_return_sequences:
            wrong = [f"num_return_sequences={self.num_return_sequences} of num_beams={self.num_beams}, expected at most as many"]
        if wrong:
            raise ConfigError(f"generate: {'; '.join(wrong)}")


DRAWING = ("temperature", "top_k", "top_p", "min_p")
OURS = {f.name: f.name for kind in (Sampling, Beams) for f in fields(kind)}  # a key of the file -> ours
FILE = {**OURS, "max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens", "stop_strings": "stop"}
# keys that would change the text and are not computed -> their value that changes nothing
OTHERS = {"typical_p": 1.0, "top_h": None, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "encoder_repetition_penalty": 1.0,
          "encoder_no_repeat_ngram_size": 0, "sequence_bias": None, "penalty_alpha": None, "guidance_scale": None,
          "exponential_decay_length_penalty": None, "num_beam_groups": 1, "diversity_penalty": 0.0, "constraints": None,
          "force_words_ids": None, "watermarking_config": None, "renormalize_logits": False, "dola_layers": None}


def settings(model, given, sampling=None):
    """given: {name: value} from the caller -> Sampling, Beams, max_tokens, stop. With a Sampling of the caller's nothing else counts.

    model.generation holds the keys of generation_config.json, which then mean what they mean in transformers: without "do_sample": true
    the likeliest token is taken, with it top_k is 50 unless the file says otherwise; max_length and min_length, of an encoder-decoder
    alone, count the start token. A caller who names a temperature, top_k, top_p or min_p draws; with num_beams too, beams are
    drawn. Where there is no such file, the keys that config.json has are taken, and tokens are drawn at temperature 1 from the whole
    vocabulary. ConfigError: an unknown name, a value out of range.
    """
    if not isinstance(model, (CausalLM, EncoderDecoder)):
        raise ValueError(f"generate: a {type(model).__name__} predicts no next token; expected a causal model or an encoder-decoder")
    for name in given:
        if name not in OURS and name not in ("max_tokens", "stop"):
            raise ConfigError(f"generate: unknown argument {name!r}.{suggest(name, OURS)}")
    if sampling is not None:
        if wrong := [f.name for f in fields(Sampling) if f.name in given]:
            raise ConfigError(f"generate: sampling and {', '.join(wrong)}; expected one or the other")
        return sampling, Beams(**{k: v for k, v in given.items() if k not in ("max_tokens", "stop")}), *_lengths(given)
    named = model.config.to_dict() if model.generation is None else model.generation
    values = {FILE[key]: value for key, value in named.items() if key in FILE and value is not None}
    if isinstance(model, EncoderDecoder):
        for key, ours in (("max_length", "max_tokens"), ("min_length", "min_tokens")):
            if isinstance(named.get(key), int) and ours not in values:
                values[ours] = max(0, named[key] - 1)
    odd = [f"{key}={named[key]!r}" for key, neutral in OTHERS.items() if named.get(key) not in (None, neutral)]
    if odd:
        warnings.warn(f"generate: the model's generation_config.json has {', '.join(odd)}, which pyllm does not compute", stacklevel=4)
    if named.get("do_sample"):
        values.setdefault("top_k", 50)
    elif model.generation is not None and not any(name in given for name in DRAWING):
        values["temperature"] = 0
    draws = given.get("temperature") != 0 and any(name in given for name in DRAWING)
    if draws and not named.get("do_sample"):
        values["num_beams"] = 1  # of the file, which searches: who draws does not
    values |= given
    if values.get("num_beams", 1) > 1 and not draws and not named.get("do_sample"):
        values["temperature"] = 0
    sampling, beams = ({f.name: values[f.name] for f in fields(kind) if f.name in values} for kind in (Sampling, Beams))
    return Sampling(**sampling), Beams(**beams), *_lengths(values)


def _lengths(values):
    return values.get("max_tokens", 100), values.get("stop", ())
