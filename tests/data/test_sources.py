"""Sources of text: a local server that speaks the hub's protocol, files placed by hand, generated and own text."""

import gzip
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lm.data.sources import StoryCorpus, TextFiles, resolve_source

TRAIN, VALID = "TinyStoriesV2-GPT4-train.txt", "TinyStoriesV2-GPT4-valid.txt"
TINYSTORIES = "/datasets/roneneldan/TinyStories/resolve/main/"
OPENWEBTEXT = "/datasets/stanford-cs336/owt-sample/resolve/main/"
# The hub library writes 10 MiB at a time, so a download must be longer than that to be cut in the middle.
CHUNK = 10 * 1024**2
LONG = b"Once upon a time there was a long story.\n" * (CHUNK * 3 // 2 // 41)


class Hub:
    """A server with files by address; notes each GET and can misbehave on the first one."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.gets: list[tuple[str, str | None]] = []
        self.first_get: str | None = None
        self.wrong_digest = False
        self.small_files = False  # in git itself, with git's digest
        self.release = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                pass

            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        content = self.files.get(request.path)
        if content is None:
            request.send_error(404)
            return
        start = 0
        wanted = request.headers.get("Range")
        if wanted is not None:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match is not None
            start = int(match[1])
        request.send_response(206 if wanted else 200)
        if wanted:
            request.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Length", str(len(content) - start))
        request.send_header("X-Repo-Commit", "0" * 40)
        if self.small_files:
            digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        else:
            digest = hashlib.sha256(content).hexdigest()
        if self.wrong_digest:
            digest = "0" * len(digest)
        request.send_header("ETag", f'"{digest}"')
        request.end_headers()
        if not body:
            return
        behaviour = self.first_get if not self.gets else None
        self.gets.append((request.path, wanted))
        if behaviour is None:
            request.wfile.write(content[start:])
            return
        request.wfile.write(content[: CHUNK + CHUNK // 4])
        request.wfile.flush()
        if behaviour == "stall":
            self.release.wait(30)
        request.close_connection = True

    def close(self) -> None:
        self.release.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield server
    server.close()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing listens on port 9 of the loopback device."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def prepare_in_another_process(data_dir: Path) -> subprocess.Popen[str]:
    code = (
        "import sys; from pathlib import Path; from lm.data.sources import resolve_source\n"
        "print(resolve_source('tinystories', Path(sys.argv[1])).splits['train'])"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_tinystories_are_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    hub.files = {TINYSTORIES + TRAIN: b"train text\n", TINYSTORIES + VALID: b"valid text\n"}
    found = resolve_source("tinystories", tmp_path)
    folder = tmp_path / "tinystories"
    assert found == TextFiles("tinystories", {"train": folder / TRAIN, "valid": folder / VALID})
    assert found.splits["train"].read_bytes() == b"train text\n"
    assert found.splits["valid"].read_bytes() == b"valid text\n"
    assert names(folder) == [TRAIN, VALID]
    assert resolve_source("tinystories", tmp_path) == found
    assert len(hub.gets) == 2


def test_openwebtext_is_decompressed(hub: Hub, tmp_path: Path) -> None:
    hub.files = {
        OPENWEBTEXT + f"owt_{split}.txt.gz": gzip.compress(f"{split} pages".encode()) for split in ("train", "valid")
    }
    found = resolve_source("openwebtext", tmp_path)
    assert {split: path.read_text() for split, path in found.splits.items()} == {
        "train": "train pages",
        "valid": "valid pages",
    }
    assert names(tmp_path / "openwebtext") == ["owt_train.txt", "owt_valid.txt"]


def test_a_cut_connection_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = {TINYSTORIES + TRAIN: LONG, TINYSTORIES + VALID: b"valid"}
    hub.first_get = "cut"
    assert resolve_source("tinystories", tmp_path).splits["train"].read_bytes() == LONG
    assert [wanted for path, wanted in hub.gets if path.endswith(TRAIN)] == [None, f"bytes={CHUNK}-"]


def test_a_killed_download_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.files = {TINYSTORIES + TRAIN: LONG, TINYSTORIES + VALID: b"valid"}
    hub.first_get = "stall"
    process = prepare_in_another_process(tmp_path)
    deadline = time.monotonic() + 20
    while not any(path.stat().st_size >= CHUNK for path in tmp_path.glob("tinystories/*.part")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert not (tmp_path / "tinystories" / TRAIN).exists()
    assert resolve_source("tinystories", tmp_path).splits["train"].read_bytes() == LONG
    assert [wanted for path, wanted in hub.gets if path.endswith(TRAIN)] == [None, f"bytes={CHUNK}-"]
    assert names(tmp_path / "tinystories") == [TRAIN, VALID]


def test_processes_that_start_together_download_once(hub: Hub, tmp_path: Path) -> None:
    hub.files = {TINYSTORIES + TRAIN: b"train text\n" * 100_000, TINYSTORIES + VALID: b"valid text\n"}
    processes = [prepare_in_another_process(tmp_path) for _ in range(2)]
    for process in processes:
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert output.strip() == str(tmp_path / "tinystories" / TRAIN)
    assert sorted(path for path, _ in hub.gets) == [TINYSTORIES + TRAIN, TINYSTORIES + VALID]


@pytest.mark.parametrize("small", [False, True])
def test_a_damaged_download_is_refused(hub: Hub, tmp_path: Path, small: bool) -> None:
    hub.small_files = small
    hub.files = {TINYSTORIES + TRAIN: b"train", TINYSTORIES + VALID: b"valid"}
    hub.wrong_digest = True
    with pytest.raises(OSError, match="damaged.*run again") as caught:
        resolve_source("tinystories", tmp_path)
    assert "\n" not in str(caught.value)
    assert names(tmp_path / "tinystories") == []
    hub.wrong_digest = False
    resolve_source("tinystories", tmp_path)
    assert names(tmp_path / "tinystories") == [TRAIN, VALID]


def test_a_part_longer_than_the_file_is_fetched_anew(hub: Hub, tmp_path: Path) -> None:
    hub.files = {TINYSTORIES + TRAIN: b"train", TINYSTORIES + VALID: b"valid"}
    digest = hashlib.sha256(b"train").hexdigest()
    (tmp_path / "tinystories").mkdir()
    (tmp_path / "tinystories" / f"{TRAIN}.{digest[:16]}.part").write_bytes(b"something else")
    assert resolve_source("tinystories", tmp_path).splits["train"].read_bytes() == b"train"


@pytest.mark.usefixtures("offline")
def test_offline_says_what_to_do_instead(tmp_path: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(ConnectionError) as caught:
        resolve_source("tinystories", tmp_path)
    assert time.monotonic() - begin < 5
    message = str(caught.value)
    assert "\n" not in message
    assert f"by hand at {tmp_path / 'tinystories' / TRAIN}" in message
    assert "configs/quickstart.yaml" in message
    assert names(tmp_path / "tinystories") == []


def test_a_file_the_hub_lacks_is_named(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(ConnectionError, match=r"owt_train\.txt\.gz.*404") as caught:
        resolve_source("openwebtext", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_files_placed_by_hand_need_no_network(tmp_path: Path) -> None:
    for source in ("tinystories", "openwebtext"):
        (tmp_path / source).mkdir()
    for name in (TRAIN, VALID):
        (tmp_path / "tinystories" / name).write_text("by hand")
    (tmp_path / "openwebtext" / "owt_train.txt").write_text("plain")
    packed = tmp_path / "openwebtext" / "owt_valid.txt.gz"
    packed.write_bytes(gzip.compress(b"packed"))
    assert resolve_source("tinystories", tmp_path).splits["valid"].read_text() == "by hand"
    splits = resolve_source("openwebtext", tmp_path).splits
    assert [splits["train"].read_text(), splits["valid"].read_text()] == ["plain", "packed"]
    assert packed.exists()


@pytest.mark.usefixtures("offline")
def test_a_damaged_archive_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "openwebtext"
    folder.mkdir()
    (folder / "owt_train.txt.gz").write_bytes(gzip.compress(b"text" * 1000)[:-12])
    with pytest.raises(OSError, match=r"owt_train\.txt\.gz is damaged"):
        resolve_source("openwebtext", tmp_path)
    assert names(folder) == ["owt_train.txt.gz"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Replaces the story generator; lists the sizes and seeds that it was asked for."""
    calls: list[tuple[int, int]] = []

    def generate_stories(path: Path, num_bytes: int, seed: int, progress: bool = False) -> float:
        calls.append((num_bytes, seed))
        path.write_text("x" * num_bytes)
        return num_bytes + seed / 8

    monkeypatch.setattr("lm.data.stories.generate_stories", generate_stories)
    return calls


def test_stories_are_written_once_with_their_nats(told: list[tuple[int, int]], tmp_path: Path) -> None:
    found = resolve_source("stories", tmp_path)
    folder = tmp_path / "stories"
    assert found.splits == {"train": folder / "train.txt", "valid": folder / "valid.txt"}
    assert found.nats == {"train": 10_000_000.0, "valid": 500_000.125}
    assert told == [(10_000_000, 0), (500_000, 1)]
    assert resolve_source("stories", tmp_path) == found
    assert len(told) == 2
    assert names(folder) == ["train.json", "train.txt", "valid.json", "valid.txt"]


def test_other_stories_lie_elsewhere(told: list[tuple[int, int]], tmp_path: Path) -> None:
    corpora = [StoryCorpus(100, 50), StoryCorpus(100, 60), StoryCorpus(100, 50, valid_seed=2)]
    found = [resolve_source("stories", tmp_path, corpus=corpus) for corpus in corpora]
    assert len({files.name for files in found} | {"stories"}) == 4
    assert [files.splits["valid"].stat().st_size for files in found] == [50, 60, 50]


@pytest.mark.parametrize("loss", ["text", "record", "edit", "rules"])
def test_stories_without_their_nats_are_written_anew(
    told: list[tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    corpus = StoryCorpus(100, 50)
    found = resolve_source("stories", tmp_path, corpus=corpus)
    train = found.splits["train"]
    if loss == "edit":
        train.write_text("another text")
    elif loss == "rules":
        monkeypatch.setattr("lm.data.stories.RULES_DIGEST", "of a later version")
    else:
        (train if loss == "text" else train.with_suffix(".json")).unlink()
    assert resolve_source("stories", tmp_path, corpus=corpus) == found
    assert told == [(100, 0), (50, 1), (100, 0), *([(50, 1)] if loss == "rules" else [])]
    assert train.stat().st_size == json.loads(train.with_suffix(".json").read_text())["bytes"] == 100


def test_stories_cut_off_leave_no_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def generate_stories(path: Path, num_bytes: int, seed: int, progress: bool = False) -> float:
        path.write_text("half a sto")
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.data.stories.generate_stories", generate_stories)
    with pytest.raises(KeyboardInterrupt):
        resolve_source("stories", tmp_path)
    assert not (tmp_path / "stories" / "train.txt").exists()


def test_story_corpus_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="train_bytes is 0"):
        StoryCorpus(train_bytes=0)
    with pytest.raises(ValueError, match="both 3"):
        StoryCorpus(train_seed=3, valid_seed=3)


def test_own_text_is_used_where_it_lies(tmp_path: Path) -> None:
    train, valid = tmp_path / "my book.txt", tmp_path / "other.txt"
    train.write_text("one")
    valid.write_text("two")
    found = resolve_source("text", tmp_path / "data", train, valid)
    assert found == TextFiles("text-my book", {"train": train, "valid": valid})
    assert not (tmp_path / "data").exists()


def empty_file(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: None, FileNotFoundError, "does not exist"),
        (empty_file, ValueError, "is empty"),
        (Path.mkdir, ValueError, "is a folder"),
    ],
)
def test_own_text_that_cannot_be_used(
    make: Callable[[Path], None], error: type[Exception], message: str, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text("text")
    make(bad)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(error, match=rf"bad\.txt.*{message}") as caught:
            resolve_source("text", tmp_path, *pair)
        assert "\n" not in str(caught.value)


def test_own_text_needs_both_files_and_its_source(tmp_path: Path) -> None:
    good = tmp_path / "good.txt"
    good.write_text("text")
    with pytest.raises(ValueError, match="valid_text is not set"):
        resolve_source("text", tmp_path, good)
    with pytest.raises(ValueError, match="train_text is .*good.txt, but source stories"):
        resolve_source("stories", tmp_path, good)
    with pytest.raises(ValueError, match="source is 'novels'.*tinystories"):
        resolve_source("novels", tmp_path)  # pyright: ignore[reportArgumentType]
