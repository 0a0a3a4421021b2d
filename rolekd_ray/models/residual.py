"""A student and an assistant that corrects it: two networks whose logits add."""

from torch import Tensor, nn

JOIN = "+"
"""Stands between the names of the two: `resnet20+resnet8`."""


class ResidualSum(nn.Module):
    """Two networks, `student` and `assistant`, whose logits add; named `<student>+<assistant>` among the zoo's.

    Once `freeze_student` was called, training mode reaches the assistant alone: the student's weights and the running
    statistics of its BatchNorms stay as they are, so the assistant learns what the student lacks. Without it both learn
    together.

    Args:
        student: maps images (N, C, H, W) to logits (N, K).
        assistant: the same, of any architecture; as a rule a smaller one.

    Source: residual knowledge distillation (Gao et al., arXiv 2002.09168), of which the abstract was read: an assistant
    learns the residual error between the teacher's and the student's feature maps, and both are derived from one given
    network so that together they cost no more than it. Ours: the sum is of logits, not of feature maps; the student is
    finished before the assistant begins; the losses are the run's, on the sum; the assistant's cost comes on top.
    Whether the paper trains in this order and combines predictions so is not verified.
    """

    def __init__(self, student: nn.Module, assistant: nn.Module):
        super().__init__()
        self.student = student
        self.assistant = assistant
        self.frozen = False

    def forward(self, images: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, K)."""
        return self.student(images) + self.assistant(images)

    def freeze_student(self) -> None:
        """Keep the student as it is from now on: in evaluation mode, without gradients."""
        self.frozen = True
        self.student.requires_grad_(False)
        self.student.eval()

    def train(self, mode: bool = True) -> "ResidualSum":
        """Set training mode; a frozen student stays in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.student.eval()
        return self
