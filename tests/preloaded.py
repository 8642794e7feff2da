"""`python -m lm` in processes of their own, forked from one that has imported torch and Lightning already."""

import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["lm.training.lightning_cli", "lm.commands.generation"])
LM = """
import sys
from lm.cli import main
sys.exit(main(sys.argv[1:]))
"""


def run(folder: Path, *arguments: object, script: str = LM, ranks: int = 1) -> subprocess.CompletedProcess[str]:
    """What `python -m lm ARGUMENTS` in `folder` prints and returns, or minus the signal that ended it; with one thread.

    Args:
        folder: made where it is missing.
        arguments: of the script.
        script: in place of lm's own.
        ranks: processes, started as torchrun would; the first one's results count.
    """
    folder.mkdir(exist_ok=True)
    command = ["lm", *map(str, arguments)]
    outputs = [(folder / f"stdout{rank}.txt", folder / f"stderr{rank}.txt") for rank in range(ranks)]
    places = [{}]
    if ranks > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        places = [{"LOCAL_RANK": str(n), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for n in range(ranks)]
    processes = [
        CONTEXT.Process(target=_in_child, args=(folder, command, script, *started))
        for started in zip(outputs, places, strict=True)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, f"{command} took more than 300 seconds"
    shown, errors = (output.read_text(encoding="utf-8") for output in outputs[0])
    code = processes[0].exitcode
    assert code is not None
    return subprocess.CompletedProcess(command, code, shown, errors)


def _in_child(folder: Path, command: list[str], script: str, outputs: tuple[Path, Path], place: dict[str, str]) -> None:
    import torch

    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(folder)
    os.environ.update(place)
    torch.set_num_threads(1)
    sys.argv = command
    exec(script, {"__name__": "__main__"})
