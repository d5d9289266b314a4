"""What GPUs can do at most; free of torch, so that a plan may name one that is not here."""

from __future__ import annotations

# Dense bf16 peaks from the makers' data sheets, in FLOP/s, by what torch calls the device.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


def named_peak(name: str) -> float | None:
    """The peak of a device by its name, such as "NVIDIA A100-SXM4-80GB"; None where it is not known."""
    words = name.replace("-", " ").lower()
    return next((peak for known, peak in PEAKS.items() if f" {known.lower()} " in f" {words} "), None)
