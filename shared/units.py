"""Bytes as people read them, in decimal units: GB = 1e9 bytes."""


def human(size: float) -> str:
    """Three digits and a decimal unit: `human(5_536_691_200)` is '5.54 GB' (GB = 1e9 bytes)."""
    for unit in ("B", "kB", "MB", "GB"):
        text = _digits(size)
        if abs(float(text)) < 1000:
            return f"{text} {unit}"
        size /= 1000
    return f"{_digits(size)} TB"


def _digits(number: float) -> str:
    """Three digits. Rounded first, so that 999.9 MB becomes 1 GB and not 1e+03 MB."""
    return f"{float(f'{number:.3g}'):g}"
