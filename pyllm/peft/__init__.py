"""Parameter-efficient fine-tuning: adapters of a frozen model, one file a method. METHODS: name -> method.

    peft.inject(model, peft.LoRA(rank=8), seed=0)     # then train as ever: only the adapter learns
    peft.save(model, "folder")                        # a folder that PEFT opens too; peft.load(model, "folder")
    peft.merge(model, verify=batch)                   # into the weights; peft.unmerge(model) takes it out to the byte
"""
from pyllm.peft.adalora import AdaLoRA, allocate, orthogonal
from pyllm.peft.base import Adapter, Method, Report, activate, adapters, disabled, inject, names, rates, remove, report, score_layers
from pyllm.peft.bitfit import BitFit
from pyllm.peft.bottleneck import Houlsby, Parallel, Pfeiffer
from pyllm.peft.combine import combine
from pyllm.peft.exchange import load_hub, load_mlx, save_gguf, save_hub
from pyllm.peft.folder import load, save, tensors_of
from pyllm.peft.ia3 import IA3
from pyllm.peft.ln_tuning import LNTuning
from pyllm.peft.lora import LoRA
from pyllm.peft.merge import MergeReport, merge, unmerge
from pyllm.peft.prefix import PrefixTuning
from pyllm.peft.prompt import PromptTuning, PTuning
from pyllm.peft.rows import rows, swap
from pyllm.peft.tokens import TrainedTokens
from pyllm.peft.vera import VeRA

METHODS = {method.NAME: method for method in (LoRA, AdaLoRA, VeRA, IA3, LNTuning, BitFit, Houlsby, Pfeiffer, Parallel, PrefixTuning,
                                             PromptTuning, PTuning, TrainedTokens)}

__all__ = ["METHODS", "AdaLoRA", "Adapter", "BitFit", "Houlsby", "IA3", "LNTuning", "LoRA", "MergeReport", "Method", "PTuning", "Parallel",
           "Pfeiffer", "PrefixTuning", "PromptTuning", "Report", "TrainedTokens", "VeRA", "activate", "adapters", "allocate", "combine",
           "disabled", "inject", "load", "load_hub", "load_mlx", "merge", "names", "orthogonal", "rates", "remove", "report", "rows",
           "save", "save_gguf", "save_hub", "score_layers", "swap", "tensors_of", "unmerge"]
