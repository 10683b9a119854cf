"""Model hubs, each through its own client library: what is already there is not fetched again, what broke off goes on."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from pathlib import Path

from core.errors import UserError

NESTED = ["*/*"]  # other formats of the same model lie in subfolders
PADDLE_OWNER = "PaddlePaddle"  # whose repositories on ModelScope and AI Studio are baidu's on Hugging Face


def download(source: str, repo: str, revision: str | None, cache: Path | None, patterns: list[str]) -> Path:
    """The folder that holds the repository's files of these patterns. :raises UserError: whatever went wrong."""
    try:
        return HUBS[source](repo, revision, cache, patterns)
    except UserError:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError.of(
                f"no space is left on the disk while fetching {repo}",
                "model_cache",
                "free some disk, or --model-cache FOLDER on another one; what is there already will not be fetched again",
            ) from error
        raise could_not(repo, source, error) from error
    except Exception as error:  # each client has exceptions of its own, and of the HTTP library of its age
        raise could_not(repo, source, error) from error


def kept(source: str, repo: str, revision: str | None, cache: Path | None) -> Path | None:
    """The folder of what was fetched of a repository before, in part or whole; nobody else is asked."""
    try:
        match source:
            case "huggingface":
                import huggingface_hub

                return Path(huggingface_hub.snapshot_download(repo, revision=revision, cache_dir=cache, local_files_only=True))
            case "modelscope":
                from modelscope import snapshot_download

                where = {} if cache is None else {"cache_dir": str(cache / "modelscope")}
                return Path(snapshot_download(paddle_name(repo), revision=revision or "master", local_files_only=True, **where))
            case _:
                folder = cache / "aistudio" / paddle_name(repo) if cache is not None else None
                return folder if folder is not None and folder.is_dir() else None
    except Exception:  # each client has exceptions of its own for what is not there
        return None


def from_huggingface(repo: str, revision: str | None, cache: Path | None, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    quiet = not sys.stderr.isatty() and not are_progress_bars_disabled()
    if quiet:
        disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, cache_dir=cache, allow_patterns=patterns, ignore_patterns=NESTED
            )
        )
    except errors.GatedRepoError as error:
        raise UserError.of(
            f"{repo} on Hugging Face is gated: its owner lets only those who accepted its terms fetch it",
            "model",
            "accept the terms on the model's page, then run hf auth login or set HF_TOKEN",
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise UserError.of(
            f"Hugging Face has no model {repo}, or it is private",
            "model",
            "check the name",
            "for a private model: hf auth login, or HF_TOKEN",
            "for another hub: --model-source modelscope or aistudio",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError.of(
            f"{repo} on Hugging Face has no revision {revision!r}", "revision", "drop --revision, or name another"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise unreachable(repo, "Hugging Face") from error
    finally:
        if quiet:
            enable_progress_bars()


def from_modelscope(repo: str, revision: str | None, cache: Path | None, patterns: list[str]) -> Path:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise not_installed("ModelScope", "modelscope", error) from error
    where = {} if cache is None else {"cache_dir": str(cache / "modelscope")}
    return Path(
        snapshot_download(
            paddle_name(repo), revision=revision or "master", allow_patterns=patterns, ignore_patterns=NESTED, **where
        )
    )


def from_aistudio(repo: str, revision: str | None, cache: Path | None, patterns: list[str]) -> Path:
    try:
        from aistudio_sdk.snapshot_download import snapshot_download
    except ImportError as error:
        raise not_installed("AI Studio", "aistudio", error) from error
    repo = paddle_name(repo)
    where = {} if cache is None else {"local_dir": str(cache / "aistudio" / repo)}
    return Path(
        snapshot_download(repo_id=repo, revision=revision or "master", allow_patterns=patterns, ignore_patterns=NESTED, **where)
    )


HUBS: dict[str, Callable[[str, str | None, Path | None, list[str]], Path]] = {
    "huggingface": from_huggingface,
    "modelscope": from_modelscope,
    "aistudio": from_aistudio,
}
TITLES = {"huggingface": "Hugging Face", "modelscope": "ModelScope", "aistudio": "AI Studio"}


def paddle_name(repo: str) -> str:
    owner, name = repo.split("/", 1)
    return f"{PADDLE_OWNER}/{name}" if owner == "baidu" else repo


def not_installed(title: str, extra: str, error: ImportError) -> UserError:
    return UserError.of(
        f"fetching from {title} needs its client library, which cannot be imported: {error}",
        "model_source",
        f"pip install 'dovetail-serve[{extra}]'",
        "--model-source huggingface",
    )


def unreachable(repo: str, title: str) -> UserError:
    return UserError.of(
        f"{title} cannot be reached, and {repo} is not in the cache whole",
        "model",
        "check the network, or a proxy's HTTPS_PROXY",
        "give a local folder as --model, or --model demo",
    )


def could_not(repo: str, source: str, error: Exception) -> UserError:
    said = str(error).strip().splitlines()
    return UserError.of(
        f"could not fetch {repo} from {TITLES[source]}: {said[0] if said else type(error).__name__}",
        "model",
        "check the name and the network, then try again: what is there already will not be fetched again",
        "give a local folder as --model",
    )
