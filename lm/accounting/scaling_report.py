"""The account of a workload on many GPUs, as plain data and as a table for the terminal."""

from dataclasses import asdict, replace
from typing import Any

from lm.accounting.devices import host_links, training_peak
from lm.accounting.flops import forward_flops
from lm.accounting.parameters import count_parameters
from lm.accounting.report import check_account
from lm.accounting.scaling import LINK_SHARE, Sharded

_DAY = 86_400


def sharded_account(
    sharded: Sharded,
    memory_bytes: int = 80 * 10**9,
    device: str = "H100",
    utilisation: float = 0.5,
    network: float | None = None,
) -> dict[str, Any]:
    """Memory, communication and time of a workload on a cluster, ready for JSON; bytes and seconds.

    Args:
        sharded: workload and cluster.
        memory_bytes: memory of a GPU that the largest micro-batch has to fit into.
        device: a name that `host_links` knows.
        utilisation: share of the peak that a GPU reaches while it does not wait, operations done again included.
        network: bytes per second that each GPU sends to other hosts; by default `host_links`.

    Raises:
        ValueError: a number is out of range, or the device is unknown.
    """
    workload, cluster = sharded.workload, sharded.cluster
    check_account(workload, memory_bytes, utilisation)
    links = host_links(device)
    if network is not None:
        if network <= 0:
            raise ValueError(f"the network's rate is {network} bytes per second, it must be above 0")
        links = replace(links, network=network)
    products, peak = training_peak(device, None, workload.precision == "bf16-mixed")
    seconds = sharded.seconds(links, peak * utilisation)
    tokens_per_step = workload.batch_size * workload.net.context_length * cluster.data_parallel
    tokens_per_second = tokens_per_step / seconds["step"]
    flops = 3 * forward_flops(workload.net).total * workload.batch_size * cluster.data_parallel
    sent = sharded.sent()
    return {
        "workload": {**asdict(workload), "checkpointing": sharded.checkpointing, "ff_width": workload.net.ff_width},
        "cluster": {**asdict(cluster), "data_parallel": cluster.data_parallel, "device": device, **asdict(links)},
        "parameters": count_parameters(workload.net).total,
        "memory": sharded.memory(),
        "largest_batch": {"memory": memory_bytes, "batch_size": sharded.largest_batch(memory_bytes)},
        "sent": {**asdict(sent), "total": sent.total},
        "seconds": seconds,
        "products": products,
        "peak_flops": peak,
        "utilisation": {"computing": utilisation, "expected": flops / (cluster.gpus * peak * seconds["step"])},
        "tokens_per_step": tokens_per_step,
        "tokens_per_second": tokens_per_second,
        "tokens": workload.tokens,
        "training_seconds": None if workload.tokens is None else workload.tokens / tokens_per_second,
    }


def sharded_table(report: dict[str, Any]) -> str:
    """The account as text for the terminal."""
    workload, cluster, memory, sent = (report[key] for key in ("workload", "cluster", "memory", "sent"))
    seconds, fit, used = report["seconds"], report["largest_batch"], report["utilisation"]
    sends = {
        "all-gather, forward": sent["gather_forward"],
        "all-gather, backward": sent["gather_backward"],
        "reduce-scatter": sent["reduce_scatter"],
        "all-reduce, tensor parallel": sent["tensor_forward"] + sent["tensor_backward"],
        "total": sent["total"],
    }
    times = {
        "computing": seconds["computing"],
        "tensor parallel": seconds["tensor_parallel"],
        "gathers and scatters": seconds["sharding"],
        "communication not hidden": seconds["not_hidden"],
        "step": seconds["step"],
    }
    lines = [
        f"{workload['name']}, {report['parameters']:,} parameters, on {cluster['gpus']:,} {cluster['device']}",
        f"  {cluster['data_parallel']:,} data-parallel × {cluster['tensor_parallel']} tensor-parallel; micro-batch "
        f"{workload['batch_size']} × {workload['net']['context_length']:,} tokens, {workload['precision']}, "
        f"checkpointing {'on' if workload['checkpointing'] else 'off'}",
        "",
        "memory of a GPU, GB",
        *(f"  {name:<30}{size / 1e9:>12,.3f}" for name, size in memory.items()),
        f"  largest micro-batch in {fit['memory'] / 1e9:g} GB: {fit['batch_size']:,}",
        "",
        "sent by a GPU in a step, GB",
        *(f"  {name:<30}{size / 1e9:>12,.3f}" for name, size in sends.items()),
        "",
        f"time, ms, at {used['computing']:.0%} of {report['peak_flops'] / 1e12:g} TFLOP/s ({report['products']}) and "
        f"{LINK_SHARE:.0%} of {cluster['nvlink'] / 1e9:g} GB/s (NVLink)",
        f"and {cluster['network'] / 1e9:g} GB/s (network), each way",
        *(f"  {name:<30}{time * 1e3:>12,.1f}" for name, time in times.items()),
        "",
        f"expected utilisation {used['expected']:.1%}",
        f"  {report['tokens_per_step']:,} tokens a step, {report['tokens_per_second']:,.0f} tokens a second",
    ]
    if report["tokens"] is not None:
        lines.append(f"  {report['tokens']:,} tokens: {report['training_seconds'] / _DAY:,.2f} days")
    return "\n".join(lines)
