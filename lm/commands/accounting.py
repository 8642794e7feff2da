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
        utilisation: share of the device's peak that training reaches.
        json: print JSON instead of a table.
    """
    from json import dumps

    from lm import accounting

    if device == "list":
        print(dumps(accounting.devices(), indent=2) if json else accounting.devices_table())
        return
    workload = accounting.read_workload(models, net).changed(batch_size, precision, tokens)
    report = accounting.full_account(workload, checkpointing, round(memory_gb * 1e9), device, products, utilisation)
    print(dumps(report, indent=2) if json else accounting.as_table(report))
