"""Small models, data and runs that the training tests share."""
import numpy as np

from pyllm import training
from pyllm.data.loader import Loader
from pyllm.data.shards import in_memory
from pyllm.models import GPT2, GPT2Config, Llama, LlamaConfig
from pyllm.objectives import clm

V = 11


def gpt2(**sizes):
    return GPT2(GPT2Config(**{"vocab_size": V, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, **sizes}))


def llama():
    return Llama(LlamaConfig(vocab_size=V, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
                             num_key_value_heads=1, max_position_embeddings=16))


def filled(model, dtype=np.float32):
    """The model with weights from a formula: the same in every library and version."""
    for i, (name, p) in enumerate(model.named_parameters()):
        wave = np.sin(np.arange(p.size) * (0.37 + 0.11 * i) + i).reshape(p.shape)
        p.data = (wave * 0.2 + (p.ndim == 1 and not name.endswith("bias"))).astype(dtype)
    return model


def corpus():
    """A few short documents, so that epochs end in the middle of a step."""
    return in_memory([(np.arange(n) * (k + 3) + n) % V for k, n in enumerate((23, 9, 40, 31))], V)


class Run:
    """A training run with everything that could go wrong on resume: dropout, shuffling, accumulation, averages."""

    def __init__(self, seed=3):
        self.model = gpt2(embd_pdrop=0.1, resid_pdrop=0.2, attn_pdrop=0.1).initialize(seed)
        self.optimizer = training.AdamW(self.model)
        self.ema = training.EMA(self.model, 0.9)
        self.loader = Loader(corpus(), 3, 8, seed)
        self.seed = seed

    def records(self, steps, start=0, objective=clm):
        rate = training.cosine(1e-2, 20, warmup=3, min_lr=1e-3)
        for record in training.train(self.model, objective, self.loader, self.optimizer, steps=steps, start=start, lr=rate, accumulate=3,
                                     seed=self.seed):
            self.ema.update()
            yield record

    def save(self, folder, step, **options):
        state = {"data": self.loader.state()}
        return training.save_checkpoint(folder, step, self.model, None, self.optimizer, state, ema=self.ema, **options)

    def load(self, path):
        step, state = training.load_checkpoint(path, self.model, self.optimizer, self.ema)
        self.loader.load_state(state["data"])
        return step

    def bits(self):
        tensors = {**self.model.state(), **self.optimizer.state(), **{f"ema.{k}": v for k, v in self.ema.state().items()}}
        return {name: array.tobytes() for name, array in tensors.items()}
