"""The whole account of a workload, as plain data and as a table for the terminal."""

from dataclasses import asdict
from typing import Any, get_args

from lm.accounting.devices import Precision, devices, training_peak
from lm.accounting.fast import covers, fast_moments, largest_fast_batch
from lm.accounting.flops import forward_flops, norm_flops, optimizer_step, recomputed_flops, training_flops_per_token
from lm.accounting.memory import WIDE, Line, largest_batch, moments, optimizer_state, saved_activations
from lm.accounting.parameters import count_block_parameters, count_parameters
from lm.accounting.presets import Workload

_DAY = 86_400


def full_account(
    workload: Workload,
    checkpointing: bool = False,
    memory_bytes: int = 80 * 10**9,
    device: str = "H100",
    products: Precision | None = None,
    utilisation: float = 0.5,
) -> dict[str, Any]:
    """Everything the package can say about a workload, ready for JSON; bytes, operations and seconds.

    Args:
        workload: model, micro-batch, precision and tokens.
        checkpointing: compute each block again in the backward pass.
        memory_bytes: memory that the largest batch has to fit into.
        device: a name that `peak_flops` knows.
        products: type of the matrix products, which sets the peak; by default bfloat16 for bf16-mixed and what `fit`
            allows for float32, TF32, where the device has it.
        utilisation: share of the peak that training reaches, operations done again included.

    Raises:
        ValueError: a number is out of range, or the device or its rate is unknown.
    """
    check_account(workload, memory_bytes, utilisation)
    net = workload.net
    parameters = count_parameters(net)
    forward = forward_flops(net)
    step_flops = 3 * forward.total * workload.batch_size
    return {
        "workload": {**asdict(workload), "checkpointing": checkpointing, "ff_width": net.ff_width},
        "parameters": {
            **asdict(parameters),
            "total": parameters.total,
            "non_embedding": parameters.non_embedding,
            "in_blocks": count_block_parameters(net),
        },
        "flops": {
            "forward_per_sequence": {**asdict(forward), "total": forward.total},
            "norms_per_sequence": norm_flops(net),
            "training_per_token": training_flops_per_token(net),
            "training_per_step": step_flops,
            "recomputed_per_step": recomputed_flops(net) * workload.batch_size if checkpointing else 0,
        },
        "memory": _memory(workload, checkpointing, memory_bytes),
        "optimizer_step": asdict(optimizer_step(net)),
        "time": _time(workload, checkpointing, device, products, utilisation),
    }


def check_account(workload: Workload, memory_bytes: int, utilisation: float) -> None:
    """Raises ValueError where a number is out of range."""
    if workload.batch_size < 1:
        raise ValueError(f"batch_size is {workload.batch_size}, it must be at least 1")
    if not 0 < utilisation <= 1:
        raise ValueError(f"utilisation is {utilisation}, it must be above 0 and at most 1")
    if workload.tokens is not None and workload.tokens < 1:
        raise ValueError(f"tokens is {workload.tokens}, it must be at least 1")
    if memory_bytes <= 0:
        raise ValueError(f"the memory is {memory_bytes} bytes, it must be above 0")


def _memory(workload: Workload, checkpointing: bool, memory_bytes: int) -> dict[str, Any]:
    net, batch = workload.net, workload.batch_size
    total = count_parameters(net).total
    at_moments = moments(net, net.context_length, workload.precision, checkpointing, algorithm=workload.algorithm)
    state = optimizer_state(net, workload.algorithm)
    peak = max(at_moments, key=lambda name: at_moments[name].at(batch))
    saved = saved_activations(net, net.context_length, workload.precision, checkpointing)
    activations = sum(saved.values(), Line(0))

    def entry(line: Line) -> dict[str, int]:
        return {"bytes": line.at(batch), **asdict(line)}

    return {
        "parameters": WIDE * total,
        "gradients": WIDE * total,
        "optimizer_state": state,
        "activations": {name: entry(line) for name, line in saved.items()},
        "activations_total": entry(activations),
        "everything_kept": entry(activations + Line(0, 2 * WIDE * total + state)),
        "moments": {name: entry(line) for name, line in at_moments.items()},
        "peak": {"moment": peak, **entry(at_moments[peak])},
        "largest_batch": {"memory": memory_bytes, "batch_size": largest_batch(at_moments, memory_bytes)},
        "fast_path": _fast_path(workload, checkpointing, memory_bytes),
    }


def _fast_path(workload: Workload, checkpointing: bool, memory_bytes: int) -> dict[str, Any] | None:
    """What `fit` needs on an NVIDIA GPU; None where that is not known."""
    net = workload.net
    if not covers(net, workload.precision):
        return None
    shape = (net, net.context_length)
    at_moments = fast_moments(*shape, workload.batch_size, checkpointing, workload.algorithm)
    return {
        "moments": at_moments,
        "peak": max(at_moments.values()),
        "largest_batch": largest_fast_batch(*shape, memory_bytes, checkpointing, workload.algorithm),
    }


def _time(
    workload: Workload, checkpointing: bool, device: str, products: Precision | None, utilisation: float
) -> dict[str, Any]:
    chosen, peak = training_peak(device, products, workload.precision == "bf16-mixed")
    net = workload.net
    recomputed = recomputed_flops(net) // net.context_length if checkpointing else 0
    tokens_per_second = peak * utilisation / (training_flops_per_token(net) + recomputed)
    return {
        "device": device,
        "products": chosen,
        "peak_flops": peak,
        "utilisation": utilisation,
        "tokens_per_second": tokens_per_second,
        "tokens": workload.tokens,
        "seconds": None if workload.tokens is None else workload.tokens / tokens_per_second,
    }


def as_table(report: dict[str, Any]) -> str:
    """The account as text for the terminal."""
    workload, parameters, flops, memory = (report[key] for key in ("workload", "parameters", "flops", "memory"))
    net, batch = workload["net"], workload["batch_size"]
    lines = [
        workload["name"],
        f"  vocab_size {net['vocab_size']:,}, context_length {net['context_length']:,}, num_layers "
        f"{net['num_layers']}, d_model {net['d_model']:,}, num_heads {net['num_heads']}, d_ff {workload['ff_width']:,}",
        f"  {net['ffn']}, {net['attention']} attention; batch {batch}, {workload['precision']}, checkpointing "
        f"{'on' if workload['checkpointing'] else 'off'}",
    ]
    whole = parameters["total"]
    parts = ("token_embeddings", "attention", "ffn", "norms", "lm_head", "total", "non_embedding", "in_blocks")
    lines += ["", f"{'parameters':<32}{'number':>24}{'share':>10}"]
    lines += [_row(name, parameters[name], whole) for name in parts]
    forward = flops["forward_per_sequence"]
    lines += ["", f"{'FLOPs, matrix products':<32}{'forward, a sequence':>24}{'share':>10}"]
    lines += [_row(name, value, forward["total"]) for name, value in forward.items()]
    lines += [
        f"  norms, 2 an element, are not in the total: {flops['norms_per_sequence']:,} "
        f"(with them {forward['total'] + flops['norms_per_sequence']:,})",
        f"  training, forward and backward: {flops['training_per_token']:,} a token, "
        f"{flops['training_per_step']:,} a batch",
    ]
    if flops["recomputed_per_step"]:
        lines.append(f"  computed again for checkpointing: {flops['recomputed_per_step']:,} a batch")
    lines += ["", f"{'memory, GB':<32}{'at this batch':>24}{'a sequence':>16}{'fixed':>16}"]
    for name in ("parameters", "gradients", "optimizer_state"):
        lines.append(_bytes_row(name, {"bytes": memory[name], "per_sequence": 0, "fixed": memory[name]}))
    lines += [_bytes_row(f"saved: {name}", entry) for name, entry in memory["activations"].items()]
    lines.append(_bytes_row("all activations saved", memory["activations_total"]))
    lines.append(_bytes_row("all of the above", memory["everything_kept"]))
    lines += [_bytes_row(f"in use, {name}", entry) for name, entry in memory["moments"].items()]
    peak, fit = memory["peak"], memory["largest_batch"]
    lines += [
        f"  peak: {_gb(peak['bytes'])} GB = {_gb(peak['per_sequence'])} · batch + {_gb(peak['fixed'])} "
        f"({peak['moment']})",
        f"  largest batch in {fit['memory'] / 1e9:g} GB: {fit['batch_size']:,}",
    ]
    if (fast := memory["fast_path"]) is not None:
        lines.append(
            f"  on the fast path, as fit goes on an NVIDIA GPU: peak {_gb(fast['peak'])} GB, "
            f"largest batch {fast['largest_batch']:,}"
        )
    step, time = report["optimizer_step"], report["time"]
    lines += [
        "",
        "one step of AdamW",
        f"  {step['flops']:,} FLOPs; {step['bytes_moved']:,} bytes read and written, "
        f"{step['bytes_moved_fused']:,} if fused",
        "",
        f"time on {time['device']}: {time['utilisation']:.0%} of {time['peak_flops'] / 1e12:g} TFLOP/s "
        f"({time['products']})",
        f"  {time['tokens_per_second']:,.0f} tokens a second",
    ]
    if time["tokens"] is not None:
        seconds = time["seconds"]
        lines.append(f"  {time['tokens']:,} tokens: {seconds:,.0f} s, {seconds / _DAY:,.2f} days")
    return "\n".join(lines)


def devices_table() -> str:
    """Every known device with its peaks, in TFLOP/s."""
    lines = [f"{'device, peak TFLOP/s':<24}" + "".join(f"{kind:>10}" for kind in get_args(Precision))]
    for name, rates in devices().items():
        cells = ("-" if rate is None else f"{rate / 1e12:g}" for rate in rates.values())
        lines.append(f"{name:<24}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join(lines)


def _row(name: str, value: int, whole: int) -> str:
    return f"  {name:<30}{value:>24,}{value / whole:>10.2%}"


def _bytes_row(name: str, entry: dict[str, int]) -> str:
    return f"  {name:<30}{_gb(entry['bytes']):>24}{_gb(entry['per_sequence']):>16}{_gb(entry['fixed']):>16}"


def _gb(count: int) -> str:
    return f"{count / 1e9:,.4f}"
