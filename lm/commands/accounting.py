"""What models cost."""

from typing import Any

from lm.accounting import Precision, TrainingPrecision


def account(
    models: list[str],
    net: dict[str, Any] | None = None,
    batch_size: int | None = None,
    precision: TrainingPrecision | None = None,
    tokens: int | None = None,
    checkpointing: bool = False,
    memory_gb: float = 80.0,
    device: str = "H100",
    products: Precision | None = None,
    utilisation: float = 0.5,
    gpus: int | None = None,
    tensor_parallel: int = 1,
    network_gbit: float | None = None,
    json: bool = False,
) -> None:
    """Print what a model costs, by component, without running it.

    Args:
        models: a preset, a YAML configuration or a run folder, then overlays; none is tinystories.
        net: fields of the model that win over those, for example --net.context_length 16384.
        batch_size: sequences of a micro-batch on one device; by default the configuration's, else 1.
        precision: float32 or bf16-mixed; by default the configuration's, else float32.
        tokens: tokens to train on; by default the configuration's.
        checkpointing: keep each block's input only, and compute the block again in the backward pass.
        memory_gb: memory for the largest batch, in GB of 10^9 bytes.
        device: a device by name, for example A100; list prints those it knows, with their peaks.
        products: type of the matrix products; by default bfloat16 for bf16-mixed, else tf32 where the device has it.
        utilisation: share of the device's peak that training reaches; with gpus, while a GPU does not wait.
        gpus: that share the training under FSDP2, in hosts of eight: memory, communication and time of a step instead.
        tensor_parallel: GPUs of a host that split each matrix.
        network_gbit: Gbit per second that each GPU sends to other hosts; by default those of the device's DGX host.
        json: print JSON instead of a table.
    """
    from json import dumps

    from lm import accounting

    if device == "list":
        print(dumps(accounting.devices(), indent=2) if json else accounting.devices_table())
        return
    workload = accounting.read_workload(models, net).changed(batch_size, precision, tokens)
    if gpus is not None:
        if products is not None:
            raise ValueError("products is not for several GPUs; set precision")
        sharded = accounting.Sharded(workload, accounting.Cluster(gpus, tensor_parallel), checkpointing)
        network = None if network_gbit is None else network_gbit / 8 * 1e9
        report = accounting.sharded_account(sharded, round(memory_gb * 1e9), device, utilisation, network)
        print(dumps(report, indent=2) if json else accounting.sharded_table(report))
        return
    if tensor_parallel != 1 or network_gbit is not None:
        raise ValueError("tensor_parallel and network_gbit need gpus")
    report = accounting.full_account(workload, checkpointing, round(memory_gb * 1e9), device, products, utilisation)
    print(dumps(report, indent=2) if json else accounting.as_table(report))
