"""Deep mutual learning: two networks that learn together, each from the other's answers."""

from torch import Tensor

from rolekd_ray.distill.methods.hinton import hinton
from rolekd_ray.distill.registry import method


@method("mutual", online="peer")
def mutual(logits_student: Tensor, logits_teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """Return T² · mean_N KL(softmax(peer / T) ‖ softmax(student / T)): a scalar in nats.

    There is no frozen teacher. The teacher's network is a peer: it starts from fresh weights beside every student,
    learns from labels by the student's own losses and weights and, by this loss with the two swapped, from the student;
    both are run before either is updated. The teacher *role* is the peer's view: under `independent` the peer sees the
    teacher's policy, under the shared view modes both see one view. In the protocol `sequential` the teacher's schedule
    is found first, by the peer's network alone, and then stays; in `coevolve` both evolve. Other methods that take a
    teacher take the peer.

    A finished training keeps the better of the two on the validation images, if they are of one architecture; else the
    student.

    Args:
        logits_student: (N, K) of the one that learns.
        logits_teacher: (N, K) of the other.
        temperature: T above 0; 1 in the paper and in the study's code.

    Source: Zhang et al., arXiv 1706.00384 (recalled, not read again), where the second network's update already sees
    the first one's; at once as in the study's code (arXiv 2007.01922), which chose the better network by *test*
    accuracy.
    """
    return hinton(logits_student, logits_teacher, temperature)
