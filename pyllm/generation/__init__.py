"""Text from a model: cached decoding of ragged rows, sampling, beam search, sessions, streaming."""
from pyllm.generation.decode import Decoder
from pyllm.generation.generate import Generation, generate, stream
from pyllm.generation.sampling import Sampling
from pyllm.generation.session import Session

__all__ = ["Decoder", "Generation", "Sampling", "Session", "generate", "stream"]
