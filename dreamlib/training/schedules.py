"""Learning-rate schedules of the published evaluations: (initial rate, epoch, epochs) → rate, epochs counted from 0."""

from collections.abc import Callable

Schedule = Callable[[float, int, int], float]


def idc_steps_lr(lr: float, epoch: int, epochs: int) -> float:
    """Return IDC's rate: × 0.2 from epoch 2·epochs // 3 on, × 0.2 again from epoch 5·epochs // 6 on.

    >>> [round(idc_steps_lr(0.01, e, 1000), 6) for e in (0, 665, 666, 832, 833)]
    [0.01, 0.01, 0.002, 0.002, 0.0004]
    """
    return lr * 0.2 ** sum(epoch >= milestone for milestone in (2 * epochs // 3, 5 * epochs // 6))


def tenth_lr(lr: float, epoch: int, epochs: int) -> float:
    """Return the rate of DC, DSA, DM and MTT: × 0.1 from epoch epochs // 2 + 2 on.

    The released code lowers the rate at the end of epoch epochs // 2 + 1, so the following epoch is the first to use
    it. Its loops include the last epoch number: '300 epochs' are 301.

    >>> [round(tenth_lr(0.01, e, 301), 6) for e in (0, 151, 152)]
    [0.01, 0.01, 0.001]
    """
    return lr * (0.1 if epoch > epochs // 2 + 1 else 1.0)


def constant_lr(lr: float, epoch: int, epochs: int) -> float:
    """Return ``lr`` at every epoch."""
    return lr


SCHEDULES: dict[str, Schedule] = {"idc_steps": idc_steps_lr, "tenth": tenth_lr}
