"""What distortions are called in tables and legends; pure."""

from tlkd.conditions import Distortion

LABELS = {
    "center_black": "CenterBlack", "border_black": "BorderBlack", "quarter_black": "QuarterBlack",
    "gaussian_blur": "Gaussian blur", "gaussian_noise": "Gaussian noise", "contrast": "contrast",
    "brightness": "brightness", "pixelate": "pixelate", "jpeg": "JPEG",
    "low_pass": "low-pass", "band_pass": "band-pass", "high_pass": "high-pass",
}
"""Each kind in a word or two."""

HIGHEST = 2**0.5  # of all frequencies, as a fraction of Nyquist's: a diagonal's
SCALES = {"cifar": "of CIFAR-10-C", "imagenet": "of ImageNet-C"}


def describe(distortion: Distortion) -> str:
    """A distortion in short words: `CenterBlack, side 0.89 to 1`, `Gaussian noise, severity 3`, `low-pass to 0.25`."""
    words = LABELS[distortion.kind]
    if distortion.size is not None:
        words += f", side {_range(*distortion.size)}"
    if distortion.band is not None:
        words += f" {_band(*distortion.band)}"
    if distortion.severity is not None:
        words += f", severity {distortion.severity}"
    if distortion.scale in SCALES:
        words += f" {SCALES[distortion.scale]}"
    return words


def _range(low: float, high: float) -> str:
    """One number, or from one to another."""
    return _short(low) if _short(low) == _short(high) else f"{_short(low)} to {_short(high)}"


def _band(low: float, high: float) -> str:
    """Frequencies, with no end named that is no limit."""
    if high >= HIGHEST:
        return f"from {_short(low)}"
    return f"to {_short(high)}" if low == 0 else _range(low, high)


def _short(value: float) -> str:
    """At most two decimals, two digits of what is less than a tenth, and no 0 at the end."""
    return f"{value:.2g}" if value < 0.1 else f"{round(value, 2):g}"
