"""Models by name: what huggingface_hub has in its cache or fetches into it. Needs the extra `hub`."""
import re
from pathlib import Path

WANTED = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "1_Pooling/*")  # of a folder: no pickles, nothing of other libraries


def is_name(name):
    """Whether a text has the form of a model's name, ORGANISATION/MODEL, or of a GGUF file there, ORGANISATION/MODEL/FILE.gguf."""
    part = r"[A-Za-z0-9][\w.-]{0,95}"
    return re.fullmatch(f"{part}/{part}(/.+\\.gguf)?", str(name)) is not None


def fetch(name):
    """name: see is_name -> Path of the folder or the file. FileNotFoundError: no huggingface_hub, no such model, no connection."""
    try:
        from huggingface_hub import hf_hub_download, snapshot_download
    except ImportError:
        raise FileNotFoundError(f"load: {name}: no such folder or file, and a model of that name needs huggingface_hub. Hint: pip install "
                                "\"pyllm[hub]\", or give the path of a folder or of a .gguf file") from None
    organisation, model, *file = str(name).split("/", 2)
    try:
        if file:
            return Path(hf_hub_download(f"{organisation}/{model}", file[0]))
        return Path(snapshot_download(f"{organisation}/{model}", allow_patterns=list(WANTED)))
    except Exception as error:  # its own, its HTTP library's and the system's
        raise FileNotFoundError(f"load: {name}: no such folder or file, and huggingface_hub did not get a model of that name: "
                                f"{type(error).__name__}: {error}") from error
