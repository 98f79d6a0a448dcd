"""Training: the loop, optimizers, schedules, averages, checkpoints that resume exactly."""
from pyllm.training.checkpoint import Log, load_checkpoint, newest, read_log, save_checkpoint
from pyllm.training.ema import EMA, EarlyStopping
from pyllm.training.groups import freeze, layerwise
from pyllm.training.loop import Evaluation, Record, evaluate, train
from pyllm.training.optim import AdamW
from pyllm.training.schedule import SCHEDULES, constant, cosine, linear, wsd
from pyllm.training.transfer import transfer

__all__ = ["EMA", "SCHEDULES", "AdamW", "EarlyStopping", "Evaluation", "Log", "Record", "constant", "cosine", "evaluate",
           "freeze", "layerwise", "linear", "load_checkpoint", "newest", "read_log", "save_checkpoint", "train", "transfer",
           "wsd"]
