"""Models by name, `owner/name`, from the Hugging Face hub or its local cache; single files by their address.

Finds files and uploads a folder of them; what is in them is the business of `Pipeline`, `official.load` and
`features.load`. A token that the hub's own client has found appears in no message.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path, PurePosixPath

from nextscale.errors import InputError
from nextscale.files import remote
from nextscale.files.cache import Cache
from nextscale.files.checkpoint import CONFIG
from nextscale.files.remote import is_address
from nextscale.tokenizer.model import WEIGHTS as TOKENIZER
from nextscale.transformer.model import WEIGHTS as TRANSFORMER

DEFAULT_MODEL = Path(__file__).with_name("default_model")  # what comes with the package: make_default_model.py
RELEASE_TOKENIZER = "vae_ch160v4096z32.pth"
RELEASE_TRANSFORMER = "var_d{depth}.pth"
ENCODER = ("*.json", "*.txt", "*.model", "model*.safetensors", "pytorch_model.bin")  # files of a text encoder
LONGEST = 96  # characters of a hub name
FILES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".json", ".npz", ".tar", ".zip")  # no name ends like these
DATA = ("hf://datasets/owner/name", r"hf://datasets/([^/@]+/[^/@]+)(?:@(refs/[^/]+/[^/]+|[^/]+))?(?:/(.+?))?/?")
KINDS = (".parquet", ".arrow", ".tar", ".zip")  # files of a data set, of which the first kind that there is is fetched
BESIDE = ("*.json", "*.txt")  # what tells about these
PATIENCE = 5.0  # seconds for the hub to answer
LOGIN = "`hf auth login`, or a token that may write in HF_TOKEN"
WORDS = r"[\w-][\w.-]*/[\w-][\w.-]*"


def is_name(model: str | Path) -> bool:
    """Whether this is a hub name rather than a path: `owner/name`, no file's, and no such folder or `owner` here."""
    text = str(model)
    words = re.fullmatch(WORDS, text) is not None and len(text) <= LONGEST
    return words and Path(text).suffix not in FILES and not Path(text).parent.exists()


def directory(name: str) -> Path:
    """The local folder of a repository that holds what `Pipeline.save` wrote.

    Raises `InputError` when there is no such repository, it is out of reach, or it lacks one of the files.
    """
    config, *_ = _fetch(name, CONFIG, TOKENIZER, TRANSFORMER)
    return config.parent


def local(model: str | Path | None) -> Path:
    """The local folder of a model: a path is itself, what is at an address or on the hub is fetched to a cache.

    None is the model that comes with the package.

    Raises `InputError` where nothing is there, it is out of reach, or it lacks one of the files.
    """
    if model is None:
        return DEFAULT_MODEL
    if is_address(model):
        found = {name: remote.find(remote.joined(str(model), name)) for name in (CONFIG, TOKENIZER, TRANSFORMER)}
        return Cache().folder(PurePosixPath(str(model)).name, found)
    return directory(str(model)) if is_name(model) else Path(model)


def release(name: str, depth: int) -> tuple[Path, Path]:
    """The local tokenizer and transformer files of a repository laid out as the public release's. Raises likewise."""
    tokenizer, transformer = _fetch(name, RELEASE_TOKENIZER, RELEASE_TRANSFORMER.format(depth=depth))
    return tokenizer, transformer


def network(name: str) -> Path:
    """The local file of a repository that holds one network as the transformers library writes it. Raises likewise."""
    offline = not _answers(name, "model.safetensors")
    try:
        return _file(name, "model.safetensors", offline=offline)
    except InputError:
        return _file(name, "pytorch_model.bin", offline=offline)


def encoder(name: str) -> None:
    """Fetch an encoder of the transformers library, which then finds it in the cache, if need be. Raises likewise."""
    offline = not _answers(name, CONFIG)
    _file(name, CONFIG, offline=offline)
    if not offline:
        from huggingface_hub import snapshot_download

        snapshot_download(name, allow_patterns=list(ENCODER))


def check_upload(name: str) -> None:
    """Raise `InputError` unless a repository may be called so, there is a login, and the hub answers."""
    from huggingface_hub import get_token

    if re.fullmatch(WORDS, name) is None or len(name) > LONGEST:
        raise InputError(f"expected the name of a repository on the hub, owner/name, got {name!r}")
    if get_token() is None:
        raise InputError(f"expected a login to push {name} to the hub, got none: {LOGIN}")
    if not _answers(name, CONFIG):
        raise InputError(f"expected an answer of the hub to push {name}, got none")


def upload(name: str, folder: Path, *, private: bool = False) -> str:
    """Put the files of a folder into a repository, made if need be, in one commit: all of them or none. Its address.

    Arguments:
        private: whether a new one is for its owner alone; otherwise the account's own rule holds.

    Raises `InputError` when the hub refuses it or is out of reach.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub, files = HfApi(), sorted(path for path in folder.iterdir() if path.is_file())
    added = [CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file) for file in files]
    try:
        with _quiet():
            address = hub.create_repo(name, private=private or None, exist_ok=True)
            hub.create_commit(name, added, commit_message="Upload a model of nextscale")
    except (_http_error(), OSError, ValueError, RuntimeError) as error:
        raise InputError(f"cannot push {name} to the hub: {_refusal(error)}") from None
    return str(address)


def _http_error() -> type[Exception]:
    """What every fault of the hub client's HTTP library is: httpx or httpx2, by its release."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def _refusal(error: Exception) -> str:
    """Why, in one line, without the token that was used, and what mends it."""
    from huggingface_hub import get_token

    causes = [error, *([error.__cause__] if error.__cause__ else [])]
    said = ": ".join(str(each).strip().partition("\n")[0] or type(each).__name__ for each in causes)
    told = said.replace(get_token() or "\n", "(token)")
    refused = any(getattr(getattr(each, "response", None), "status_code", None) in (401, 403) for each in causes)
    return f"{told}; expected {LOGIN}" if refused else told


def data_set(address: str) -> Path:
    """The local copy of a data set, `hf://datasets/owner/name[@revision][/folder]`: a folder, or its only .zip.

    Fetched are the files that hold many pictures, all parquet files or else all shards or archives, and what tells
    about them; of a repository without any, everything. What is there already is not fetched again.

    Raises `InputError` for another address, and when there is no such data set or it is out of reach.
    """
    if (found := re.fullmatch(DATA[1], address)) is None:
        raise InputError(f"expected an address such as {DATA[0]}, got {address}")
    name, revision, below = found.groups()
    files = _files_of(name, revision, f"{below}/" if below else "")
    folder = _snapshot(name, revision, _wanted(files, f"{below}/" if below else ""), offline=files is None) / (
        below or ""
    )
    if not folder.is_dir():
        raise InputError(f"expected a data set, got {address}: there is no folder {below}")
    zips = list(folder.rglob("*.zip"))
    return zips[0] if len(zips) == 1 and not any(next(folder.rglob(f"*{kind}"), None) for kind in KINDS[:3]) else folder


def _files_of(name: str, revision: str | None, below: str) -> list[str] | None:
    """The files below a folder of a data set; None where the hub does not answer."""
    from huggingface_hub import list_repo_files

    answers: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            answers.append(list_repo_files(name, repo_type="dataset", revision=revision))
        except (HTTPException, OSError, ValueError) as error:
            answers.append(error)

    _in_time(ask)
    if not answers or isinstance(answers[0], ConnectionError | TimeoutError):
        return None
    if isinstance(answers[0], Exception):
        raise InputError(f"cannot fetch the data set {name}: {_reason(answers[0])}")
    return [file for file in answers[0] if file.startswith(below)]


def _wanted(files: list[str] | None, below: str) -> list[str] | None:
    """Patterns of the files that are fetched; None is all of them."""
    kind = next((kind for kind in KINDS if files and any(file.endswith(kind) for file in files)), None)
    if kind is None:
        return [f"{below}*"] if below else None
    return [f"{below}*{kind}", *(f"{below}{pattern}" for pattern in BESIDE)]


def _snapshot(name: str, revision: str | None, wanted: list[str] | None, *, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name, repo_type="dataset", revision=revision, allow_patterns=wanted, local_files_only=offline
            )
        )
    except (HTTPException, OSError, ValueError) as error:
        why = "it is not in the local cache and the hub cannot be asked" if offline else _reason(error)
        raise InputError(f"cannot fetch the data set {name}: {why}") from None


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


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


def _in_time(ask: Callable[[], object]) -> bool:
    """Whether the answer came within `PATIENCE`, and was no exception.

    In a thread that is left behind: clients try again and again, and looking up a host's name heeds no timeout.
    """
    answers: list[object] = []

    def run() -> None:
        with suppress(Exception):  # whatever an HTTP client raises when nobody answers
            answers.append(ask())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return bool(answers)


def _answers(name: str, file: str) -> bool:
    """Whether the hub says anything, even no, in time: its own client tries for half a minute."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    def ask() -> None:
        with suppress(HfHubHTTPError, HFValidationError):
            get_hf_file_metadata(hf_hub_url(name, file), timeout=PATIENCE)

    return _in_time(ask)


@contextmanager
def _quiet() -> Iterator[None]:
    """The client's retries take many lines, ours is one."""
    log = logging.getLogger("huggingface_hub")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _fetch(name: str, *files: str) -> list[Path]:
    """The local copies of files of a repository; whether the hub can be asked is found out once for all of them."""
    offline = not _answers(name, files[0])
    return [_file(name, file, offline=offline) for file in files]


def _file(name: str, file: str, *, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        with _quiet():
            return Path(hf_hub_download(name, file, local_files_only=offline))
    except LocalEntryNotFoundError:
        reason = "it is not in the local cache and the hub cannot be asked"
    except EntryNotFoundError:
        reason = "the repository has no such file (one of the public release's wants a depth)"
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    raise InputError(
        f"expected a model directory or a hub name, got {name}: "
        f"no such directory here, and no {file} from the hub: {reason}"
    )
