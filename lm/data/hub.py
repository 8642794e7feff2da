"""Files of Hugging Face data sets, fetched so that a cut-off download goes on where it stopped, even after a crash."""

import hashlib
import os
import re
from pathlib import Path

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def download(repo: str, name: str, target: Path) -> None:
    """Fetch the file `name` of the data set `repo` to `target`, with a progress bar.

    Bytes gather in `<target>.<version>.part` beside it; whoever calls again takes up from there. The environment
    variable HF_ENDPOINT chooses another hub. The finished file is held to the size and the digest that the hub states.

    Raises:
        ConnectionError: the hub cannot be reached, does not have the file, or stopped sending.
        OSError: what arrived is damaged.
    """
    # Slow to import, and needed for the first preparation of a source only.
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get

    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    url = hf_hub_url(repo, name, repo_type="dataset", endpoint=endpoint)
    part, received = None, 0
    while True:
        try:
            remote = get_hf_file_metadata(url)
            etag = remote.etag or ""
            part = target.with_name(f"{target.name}.{re.sub(r'[^0-9A-Za-z]', '', etag)[:16]}.part")
            if remote.size is not None and part.exists() and part.stat().st_size > remote.size:
                part.unlink()  # not the start of this file
            with part.open("ab") as file:
                http_get(
                    remote.location,
                    file,
                    resume_size=file.tell(),
                    expected_size=remote.size,
                    displayed_filename=name,
                )
            break
        except Exception as error:  # the hub library passes on whatever its HTTP client of the day raises
            size = part.stat().st_size if part is not None and part.exists() else 0
            if size <= received:
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ConnectionError(
                    f"cannot download {url} ({reason}); run again to go on, or place the file by hand at {target}, "
                    f"or train without any download: python -m lm fit --config configs/quickstart.yaml"
                ) from error
            received = size
    if _DIGEST.fullmatch(etag) and (digest := _digest(part, len(etag))) != etag:
        part.unlink()
        raise OSError(f"{url} arrived damaged: its digest is {digest}, the hub says {etag}; run again to fetch it anew")
    os.replace(part, target)


def _digest(path: Path, length: int) -> str:
    """What the hub states for a file: sha256, 64 digits, of a large one; of others git's sha1 of a blob, 40 digits."""
    size = path.stat().st_size
    digest = hashlib.sha256() if length == 64 else hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
