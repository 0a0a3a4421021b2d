"""Hinton's distillation: the teacher's softened probabilities as targets."""

import torch.nn.functional as F
from torch import Tensor

from rolekd_ray.distill.registry import method
from rolekd_ray.errors import ConfigError


@method("hinton", rk2020={"squared_temperature": False})
def hinton(
    logits_student: Tensor, logits_teacher: Tensor, temperature: float = 4.0, *, squared_temperature: bool = True
) -> Tensor:
    """Return T² · mean_N KL(softmax(teacher / T) ‖ softmax(student / T)): a scalar in nats.

    Args:
        logits_student: (N, K).
        logits_teacher: (N, K).
        temperature: T, above 0.
        squared_temperature: T² keeps the gradient's size when T changes. The role-kd code (`Soft_logits`) leaves it out
            and uses T = 3: weight w here is weight 9 w there.

    Raises:
        ConfigError: the temperature is not above 0.

    Source: Hinton et al., arXiv 1503.02531, section 2.
    """
    check_temperature(temperature)
    log_student = F.log_softmax(logits_student / temperature, dim=1)
    log_teacher = F.log_softmax(logits_teacher / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return temperature**2 * divergence if squared_temperature else divergence


def check_temperature(temperature: float) -> None:
    """Check a temperature.

    Raises:
        ConfigError: it is not above 0.
    """
    if not temperature > 0:
        raise ConfigError(f"temperature: got {temperature}; expected above 0")
