"""What a machine has just now: a matrix product, and a copy."""

import statistics
import time

import torch


def ceiling(device: str) -> tuple[float, float]:
    """TFLOP/s of a matrix product (float16 on a GPU, float32 on a CPU), and GB/s of a copy."""
    is_gpu = device != "cpu"
    side, size, rounds = (8192, 4 << 30, 10) if is_gpu else (1024, 64 << 20, 20)
    one = torch.randn(side, side, device=device, dtype=torch.float16 if is_gpu else torch.float32)
    large = torch.empty(size, dtype=torch.uint8, device=device)
    products, copies = [], []
    for _ in range(rounds):
        products.append(2 * side**3 / seconds(lambda: one @ one, device) / 1e12)
        copies.append(2 * large.nbytes / seconds(large.clone, device) / 1e9)
    return statistics.median(products), statistics.median(copies)


def seconds(work: object, device: str) -> float:
    """How long it takes, a GPU's part too."""
    assert callable(work)
    settle(device)
    began = time.perf_counter()
    work()
    settle(device)
    return time.perf_counter() - began


def settle(device: str) -> None:
    """Wait for a GPU."""
    if device != "cpu":
        torch.cuda.synchronize()


def machine(device: str) -> str:
    """Its name."""
    if device != "cpu":
        return torch.cuda.get_device_name()
    names = [line for line in open("/proc/cpuinfo") if line.startswith("model name")]  # noqa: PTH123, SIM115
    return f"{names[0].partition(': ')[2].strip()}, {len(names)} cores"
