"""Text from a model: cached decoding of ragged rows, sampling, beam search, guessing ahead, constraints, sessions, streaming."""
from pyllm.generation.constrained import Constraint
from pyllm.generation.decode import Decoder
from pyllm.generation.generate import Generation, generate, stream
from pyllm.generation.sampling import Sampling
from pyllm.generation.session import Session
from pyllm.generation.speculative import DraftModel, PromptLookup

__all__ = ["Constraint", "Decoder", "DraftModel", "Generation", "PromptLookup", "Sampling", "Session", "generate", "stream"]
