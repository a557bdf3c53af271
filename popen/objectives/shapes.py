"""What every objective asks of its tensors: equal shapes, true masks, and full precision."""

import torch


def check_same_shape(**tensors: torch.Tensor) -> None:
    """Refuse tensors that would broadcast, so that a wrong axis is an error and not a wrong loss.

    Args:
        tensors: two or more tensors by the name that the error shall print.
    Raises:
        ValueError: not all shapes are equal; the one line names every tensor and its shape.
    """
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}")


def check_bool(**tensors: torch.Tensor) -> None:
    """Refuse masks that are not bool: a uint8 mask of 0 and 255 would count every pixel 255 times.

    Raises:
        ValueError: a dtype is not torch.bool; the one line names the tensor and its dtype.
    """
    for name, tensor in tensors.items():
        if tensor.dtype != torch.bool:
            raise ValueError(f"{name} must be bool, got {tensor.dtype}")


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Lift half, bfloat16, bool and integers to float32; float32 and float64 stay as they are.

    A margin is a small difference of large sums: at |h| = 256 neighbouring bfloat16 numbers are 2 apart.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
