"""Initial weights."""

from torch import nn


def he_initialise(network: nn.Module) -> None:
    """Draw convolutions from He et al.'s normal law (fan out), set BatchNorm to the identity.

    Linear layers keep torch's own initial weights and bias.

    Source: arXiv 1502.01852, equation 14 (backward case), as the CRD benchmark's code and torchvision use it.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
