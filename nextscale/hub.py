"""Models by name, `owner/name`, from the Hugging Face hub or its local cache; single files by their address.

Only finds files; what is in them is read by `Pipeline.load`, `official.load` and `features.load`.
"""

from __future__ import annotations

import logging
import re
from http.client import HTTPException
from pathlib import Path

from nextscale.errors import InputError
from nextscale.files.checkpoint import CONFIG
from nextscale.tokenizer.model import WEIGHTS as TOKENIZER
from nextscale.transformer.model import WEIGHTS as TRANSFORMER

RELEASE_TOKENIZER = "vae_ch160v4096z32.pth"
RELEASE_TRANSFORMER = "var_d{depth}.pth"


def is_name(model: str | Path) -> bool:
    """Whether this is a hub name rather than a path: `owner/name`, and no such folder or folder `owner` here."""
    text = str(model)
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text)) and not Path(text).parent.exists()


def directory(name: str) -> Path:
    """The local folder of a repository that holds what `Pipeline.save` wrote.

    Raises `InputError` when there is no such repository, it is out of reach, or it lacks one of the files.
    """
    config, *_ = [_fetch(name, file) for file in (CONFIG, TOKENIZER, TRANSFORMER)]
    return config.parent


def release(name: str, depth: int) -> tuple[Path, Path]:
    """The local tokenizer and transformer files of a repository laid out as the public release's. Raises likewise."""
    return _fetch(name, RELEASE_TOKENIZER), _fetch(name, RELEASE_TRANSFORMER.format(depth=depth))


def network(name: str) -> Path:
    """The local file of a repository that holds one network as the transformers library writes it. Raises likewise."""
    try:
        return _fetch(name, "model.safetensors")
    except InputError:
        return _fetch(name, "pytorch_model.bin")


def download(url: str, *, sha256: str) -> Path:
    """The local copy of a file, in the folder of torch.hub; fetched if it is not there yet.

    Arguments:
        sha256: how the file's begins.

    Raises `InputError` when it cannot be fetched, or what comes is another file.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, no space; another file; a cut connection
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"cannot download {url}: {reason}; fetch it by hand, and give its path") from None
    return path


def _fetch(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)  # its retries take many lines, ours is one
    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be asked"
    except EntryNotFoundError:
        reason = "the repository has no such file (one of the public release's wants a depth)"
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    finally:
        log.setLevel(level)
    raise InputError(
        f"expected a model directory or a hub name, got {name}: "
        f"no such directory here, and no {file} from the hub: {reason}"
    )
