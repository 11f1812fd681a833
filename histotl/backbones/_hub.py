"""Files of the Hugging Face hub, with errors that say the cure, and without a minute of retries on a closed network."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from histotl.core.errors import WeightsError

TIMEOUT_S = 10
ELSEWHERE = "or download the file on another machine and give weights='path/to/file'"


def fetch(repo: str, names: Sequence[str]) -> Path:
    """Find the first of some files of a repository, in the local cache or on the hub.

    The cache comes first, without asking the hub for news: the same command gives the same weights tomorrow. On the
    hub, one short request comes before the download, because the library repeats failing requests for 23 seconds.

    Args:
        repo: ``organisation/name``, with ``@revision`` if wanted.
        names: File names, the most wanted first.

    Returns:
        The file in the local cache.

    Raises:
        WeightsError: Offline, gated, unknown repository, wrong token, no such file, or no network; with the cure.
    """
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = repo.partition("@")
    wanted = revision or None
    try:
        for name in names:
            try:
                return Path(hf_hub_download(repo, name, revision=wanted, local_files_only=True))
            except LocalEntryNotFoundError:
                continue
        if constants.HF_HUB_OFFLINE:
            fact = f"{repo} is not in the cache {constants.HF_HUB_CACHE!r}, and HF_HUB_OFFLINE is set"
            raise WeightsError(fact, hint=f"unset HF_HUB_OFFLINE, {ELSEWHERE}")
        for name in names:
            try:
                get_hf_file_metadata(hf_hub_url(repo, name, revision=wanted), timeout=TIMEOUT_S)
                return Path(hf_hub_download(repo, name, revision=wanted))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                continue
    except WeightsError:
        raise
    except HFValidationError as error:
        raise WeightsError(f"{repo!r} is no repository name of the hub", hint="write organisation/name") from error
    except _network_errors() as error:
        raise explain(repo, error) from error
    fact = f"{repo} has none of the files {', '.join(names)}"
    raise WeightsError(fact, hint="download its weights file yourself and give weights='path/to/file'")


def explain(repo: str, error: Exception) -> WeightsError:
    """Turn an error of the hub's library into ours, with the cure for that cause."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    page = f"https://huggingface.co/{repo}"
    login = "run `hf auth login` or set HF_TOKEN"
    if isinstance(error, GatedRepoError):
        return WeightsError(f"{repo} is gated", hint=f"accept its licence at {page}, then {login}")
    if isinstance(error, RevisionNotFoundError):
        return WeightsError(f"{repo} has no such revision", hint=f"look at {page} for its revisions")
    if isinstance(error, RepositoryNotFoundError | LocalTokenNotFoundError):
        fact = f"{repo} is not on the hub, or is private and this machine's token may not read it"
        return WeightsError(fact, hint=f"check the name at {page}; if it is private, {login}")
    status = getattr(error.response, "status_code", None) if isinstance(error, HfHubHTTPError) else None
    if status in (401, 403):
        fact = f"the hub refused the token for {repo} (HTTP {status})"
        return WeightsError(fact, hint=f"{login} with a valid token, and accept the licence at {page} if it has one")
    cause = re.sub(r"\s+", " ", str(error.__cause__ or error))[:200]
    fact = f"the weights of {repo} are not in the cache, and the hub cannot be reached: {cause}"
    return WeightsError(fact, hint=f"connect this machine to the network, {ELSEWHERE}")


def _network_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HfHubHTTPError

    # The hub's errors stand on those of its HTTP library, which is requests, httpx or httpx2 by the hub's version and
    # whose connection errors reach us unchanged.
    library = [kind for kind in HfHubHTTPError.__bases__ if issubclass(kind, Exception)]
    return (OSError, *library)
