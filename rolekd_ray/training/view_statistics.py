"""What the networks make of each role's view: how sure the teacher is, what it keeps, how far they are apart."""

from collections.abc import Callable, Mapping

from torch import Tensor
from torch.nn.functional import kl_div

from rolekd_ray.roles import Role
from rolekd_ray.training.batch import Batch, decides

IMAGES = 64
"""So many training images are looked at, always the same: a member's view statistics are a trend, not a measurement."""


def view_statistics(
    batch: Batch, roles: Mapping[Role, Role], answers: Mapping[Role, Callable[[Tensor], Tensor]]
) -> dict[str, float]:
    """Return statistics of views as plain numbers, by `<role>_view/<name>`.

    | name | of a role's view |
    |---|---|
    | `<network>_confidence` | mean probability of the network's first class, in [0, 1] |
    | `<network>_kept` | share of images whose first class is that of the clean image, in [0, 1] |
    | `<network>_change` | mean KL(clean ‖ view) of its probabilities, in nats: D_s and D_t of HARD-style agents |
    | `divergence` | mean KL(teacher ‖ student) on the view, in nats |

    Args:
        batch: the images.
        roles: whose views are looked at, and by whose mixing; before anything is picked.
        answers: each network's logits, (B, K) of the whole batch, for a view of this worker's rows; without gradient.
    """
    clean_view = batch.view(None, Role.STUDENT, plain=True)
    clean = {role: _log_chances(network(clean_view)) for role, network in answers.items()}
    found: dict[str, float] = {}
    for role, by in roles.items():
        view = batch.view(role, by)
        of_view = {network: _log_chances(answer(view)) for network, answer in answers.items()}
        for network, values in of_view.items():
            before = clean[network]
            kept = (values.argmax(1) == before.argmax(1)).float().mean()
            found |= {
                f"{role}_view/{network}_confidence": values.exp().amax(1).mean().item(),
                f"{role}_view/{network}_kept": kept.item(),
                f"{role}_view/{network}_change": _divergence(before, values),
            }
        if len(of_view) == 2:
            found[f"{role}_view/divergence"] = _divergence(of_view[Role.TEACHER], of_view[Role.STUDENT])
    return found


def _log_chances(logits: Tensor) -> Tensor:
    return logits.float().log_softmax(1)


def _divergence(of: Tensor, other: Tensor) -> float:
    return kl_div(other, of, reduction="batchmean", log_target=True).clamp(min=0).item()


def roles_seen(view_mode: str, trained: frozenset[Role]) -> dict[Role, Role]:
    """Return the roles whose views some network is fed with, where these networks are trained, and whose mixing counts.

    Of a teacher that is trained, its own; else, and of the student, the one that the student network's view has.
    """
    found = {Role.TEACHER: Role.TEACHER} if Role.TEACHER in trained else {}
    if Role.STUDENT in trained:
        by = decides(view_mode)
        found = ({Role.TEACHER: by} if view_mode in ("shared_teacher", "independent") else {}) | found
        found |= {Role.STUDENT: by} if view_mode != "shared_teacher" else {}
    return found
