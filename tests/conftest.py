"""Settings of every test: no Hypothesis deadline, because a shared machine has its slow moments."""
from hypothesis import settings

settings.register_profile("pyllm", deadline=None)
settings.load_profile("pyllm")
