"""Parts of the vision transformer. Imported when one is built: it needs torch.

T: tokens, the class token first. Attention is written out: PyTorch's own layers choose among kernels by mode, precision and
device, some of which add up in no fixed order; here training and evaluation run the same operations everywhere.
"""

from __future__ import annotations

import torch
from torch import nn


class Tokens(nn.Module):
    """Images [B, C, H, W] to tokens [B, T, width]: a class token and each patch, with a learned position added."""

    def __init__(self, channels: int, width: int, patch: int, num_patches: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, 1 + num_patches, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Class token 0, positions normal with standard deviation 0.02."""
        nn.init.zeros_(self.class_token)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patches row by row."""
        patches_BTW = self.patches(images).flatten(2).transpose(1, 2)
        return torch.cat([self.class_token.expand(len(images), -1, -1), patches_BTW], dim=1) + self.positions


class Attention(nn.Module):
    """Self-attention of tokens [B, T, width] with several heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.inputs = nn.Linear(width, 3 * width)  # queries, keys, values
        self.outputs = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """To the same shape."""
        count, length, width = tokens.shape
        split = self.inputs(tokens).view(count, length, 3, self.heads, width // self.heads)
        queries_BHTD, keys_BHTD, values_BHTD = split.permute(2, 0, 3, 1, 4).unbind()
        scores_BHTT = queries_BHTD @ keys_BHTD.transpose(2, 3) / (width // self.heads) ** 0.5
        mixed_BHTD = scores_BHTT.softmax(dim=3) @ values_BHTD
        outputs: torch.Tensor = self.outputs(mixed_BHTD.transpose(1, 2).flatten(2))
        return outputs


class ClassToken(nn.Module):
    """The first of the tokens [B, T, width]."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, width]."""
        return tokens[:, 0]
