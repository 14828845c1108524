"""Parts that models are built of. Imported when a model is built: it needs torch."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

LARGEST_WINDOW = 8  # places of a side; kernels are longer the larger it is
FULL_PRECISION = (torch.float32, torch.float64)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def conv_norm_celu(channels_in: int, channels: int, kernel: int, *, stride: int = 1, padding: int = 1) -> Chain:
    """Convolution with bias, BatchNorm and CELU (alpha 0.075)."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride=stride, padding=padding)
    return Chain(convolution, nn.BatchNorm2d(channels), nn.CELU(alpha=0.075))


class Chain(nn.Sequential):
    """Modules one after the other; a convolution with a bias and the BatchNorm after it are one, but for rounding the same.

    In train mode BatchNorm takes away what the bias adds, and the bias has no gradient; in eval mode the bias can be added to
    the mean that is taken away. A GPU that adds it and sums its gradient up spends a fifth of a ResNet-9's step on that. A
    CELU after BatchNorm is taken in as well, in train mode and where nobody asks for gradients: see `_norm_celu.py`.

    On processors the first two are one convolution where nobody asks for gradients. In train mode CELU overwrites what BatchNorm
    gave, which it would keep for the way back. Gradients from what CELU gave are off by a rounding of 1: nothing to a step, but
    too much in halves, and for the importance, in eval mode, of a weight that only such small gradients come to.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As Sequential's. Importances, which need the gradient of the bias in eval mode, have it added as it stands."""
        return self.through([*self], inputs)

    def through(self, modules: list[Any], inputs: torch.Tensor) -> torch.Tensor:
        """What these of the chain's modules, in a row, make of the inputs."""
        modules = [*modules]
        spares = self.spares_bias(inputs)
        joins = not (spares or _is_transformed() or _is_watched(self))
        folds = joins and not torch.is_grad_enabled()
        while modules:
            module = modules.pop(0)
            if spares and modules and _can_spare_bias(module, modules[0]):
                norm = modules.pop(0)
                after = modules.pop(0) if modules and _can_be_one(norm, modules[0], inputs.device) else None
                inputs = _normed_without_bias(inputs, module, norm, after)
            elif folds and modules and _can_fold(module, modules[0]):
                inputs = _folded(inputs, module, modules.pop(0))
            elif joins and modules and _forgets_its_outputs(module) and _is_plain_celu(modules[0]):
                inputs = module(inputs)
                inputs = nn.functional.celu(inputs, modules.pop(0).alpha, inplace=inputs.dtype in FULL_PRECISION)
            else:
                inputs = module(inputs)
        return inputs

    @staticmethod
    def spares_bias(inputs: torch.Tensor) -> bool:
        """Whether biases before BatchNorm are left out: that pays on GPUs."""
        return inputs.is_cuda


def _normed_without_bias(inputs: torch.Tensor, convolution: Any, norm: Any, celu: Any) -> torch.Tensor:
    bias, weight = convolution.bias, convolution.weight
    nothing = 0 * bias if _learns(convolution) else None  # so that it has a gradient, of zero, and its weight decay goes on
    if nothing is not None and celu is None:
        weight = weight + nothing.view(-1, 1, 1, 1)
    outputs: torch.Tensor = convolution._conv_forward(*_with_whole_eights(inputs, weight), None)
    if not norm.training:
        return _normed_by_running(outputs, norm.running_mean - bias, norm, celu)
    outputs = norm(outputs) if celu is None else _norm_celu(outputs, norm, celu, nothing)
    # by .data, as BatchNorm itself does unseen by autograd: it keeps the mean for a backward pass that does not read it
    norm.running_mean.data.add_(bias.data, alpha=norm.momentum)
    return outputs


def _folded(inputs: torch.Tensor, convolution: Any, norm: Any) -> torch.Tensor:
    """The convolution whose weights and bias do what BatchNorm in eval mode would after it."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    shift = torch.addcmul(norm.bias, convolution.bias - norm.running_mean, scale)
    outputs: torch.Tensor = convolution._conv_forward(inputs, convolution.weight * scale.view(-1, 1, 1, 1), shift)
    return outputs


def _normed_by_running(images: torch.Tensor, mean: torch.Tensor, norm: Any, celu: Any) -> torch.Tensor:
    """BatchNorm in eval mode but with that mean, and CELU if given, which overwrites the images where our kernel takes them."""
    if celu is not None and _is_usual(images, norm):
        from cu_ray.models._norm_celu import norm_celu_

        return norm_celu_(images, mean, norm.running_var, norm.weight, norm.bias, norm.eps, celu.alpha)
    outputs = nn.functional.batch_norm(images, mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return outputs if celu is None else celu(outputs)


def _with_whole_eights(inputs: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both with channels of nothing up to the next multiple of eight, as tensor cores take them."""
    more = -inputs.shape[1] % 8
    if not more or inputs.shape[1] != weight.shape[1] or torch._C._are_functorch_transforms_active():
        return inputs, weight
    wide = nn.functional.pad(inputs, (0, 0, 0, 0, 0, more)).contiguous(memory_format=torch.channels_last)
    return wide, nn.functional.pad(weight, (0, 0, 0, 0, 0, more))


def _norm_celu(inputs: torch.Tensor, norm: Any, celu: Any, nothing: torch.Tensor | None = None) -> torch.Tensor:
    """CELU of BatchNorm plus nothing [C], by kernels of our own for what they take."""
    if not _is_usual(inputs, norm):
        normed = norm(inputs)
        outputs: torch.Tensor = celu(normed if nothing is None else normed + nothing.view(-1, 1, 1).to(normed.dtype))
        return outputs
    from cu_ray.models._norm_celu import NormCelu

    norm.num_batches_tracked.add_(1)
    running = (norm.running_mean, norm.running_var)
    shift = norm.bias if nothing is None else norm.bias + nothing
    fused: torch.Tensor = NormCelu.apply(inputs, norm.weight, shift, running, norm.momentum, norm.eps, celu.alpha)
    return fused


def _is_usual(inputs: torch.Tensor, norm: Any) -> bool:
    """What the kernels take: a table with more than one value a channel."""
    one_table = _is_table(inputs) and inputs.shape[1] < inputs.numel()
    return one_table and norm.weight.dtype == norm.running_mean.dtype == torch.float32


def _is_table(inputs: torch.Tensor) -> bool:
    """Channels last, numbers of 32 bits suffice, and nothing transforms it that knows no kernels."""
    return not _is_transformed() and inputs.is_contiguous(memory_format=torch.channels_last) and inputs.numel() < 2**31


def _kernels_work(device: torch.device) -> bool:
    try:
        from cu_ray.models import _norm_celu
    except ImportError:  # Triton comes with torch for CUDA on Linux
        return False
    return bool(_norm_celu.works(device))


def _can_be_one(norm: Any, celu: Any, device: torch.device) -> bool:
    """Whether our kernels take BatchNorm and this module after it as one: as built; in eval mode, without gradients."""
    one = norm.weight is not None and norm.bias is not None and (norm.training or not torch.is_grad_enabled())
    return one and _is_plain_celu(celu) and _kernels_work(device)


def _is_plain_celu(module: Any) -> bool:
    """Whether it is as built, and nothing transforms it."""
    plain = type(module) is nn.CELU and not module.inplace and not _is_watched(module)
    return plain and not _is_transformed()


def _learns(convolution: Any) -> bool:
    return torch.is_grad_enabled() and bool(convolution.bias.requires_grad)


def _forgets_its_outputs(module: Any) -> bool:
    return type(module) is nn.BatchNorm2d and module.training and not _is_watched(module)


def _is_watched(module: Any) -> bool:
    """Whether there is more to its call than its class says: hooks, or a forward function of its own."""
    of_all = vars(nn.modules.module)  # torch's own question for these is younger than 2.4
    return "forward" in vars(module) or any(vars(module)[kind] or of_all[f"_global{kind}"] for kind in HOOKS)


def _is_transformed() -> bool:
    return bool(torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active())


def _can_fold(convolution: Any, norm: Any) -> bool:
    if not _can_spare_bias(convolution, norm) or norm.training or norm.weight is None or norm.bias is None:
        return False
    return convolution.weight.dtype == norm.weight.dtype == norm.running_var.dtype and norm.running_var.dtype in FULL_PRECISION


def _can_spare_bias(convolution: Any, norm: Any) -> bool:
    """Whether these are as they are built, not a method's own parts in their place or watched by hooks."""
    if type(convolution) is not nn.Conv2d or type(norm) is not nn.BatchNorm2d or convolution.bias is None:
        return False
    watched = _is_watched(convolution) or _is_watched(norm)
    tracked = norm.track_running_stats and norm.running_mean is not None and norm.momentum is not None
    return tracked and not watched and (norm.training or not _learns(convolution))


def conv3x3(channels_in: int, channels: int, *, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps the image's size, but for its stride."""
    return nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1, bias=bias)


class Shortcut(Chain):
    """The way past a residual branch that changes the shape: a 1x1 convolution and BatchNorm."""

    is_shortcut = True  # k does not count its convolution


def shortcut(channels_in: int, channels: int, *, stride: int, bias: bool = False) -> Shortcut | None:
    """The way past a branch with these channels and this stride; None where the branch keeps the shape."""
    if (channels_in, stride) == (channels, 1):
        return None
    return Shortcut(nn.Conv2d(channels_in, channels, 1, stride=stride, bias=bias), nn.BatchNorm2d(channels))


class Residual(nn.Module):
    """The input, or what the shortcut makes of it, plus what the modules make of it."""

    def __init__(self, *modules: nn.Module, shortcut: Shortcut | None = None) -> None:
        super().__init__()
        self.branch = Chain(*modules)
        self.shortcut = shortcut

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same shape; to the branch's where there is a shortcut."""
        passed = inputs if self.shortcut is None else self.shortcut(inputs)
        outputs: torch.Tensor = passed + self.branch(inputs)
        return outputs


class MaxPool(nn.MaxPool2d):
    """The largest value of each window of size x size places, side by side; on GPUs by kernels of our own."""

    def __init__(self, size: int) -> None:
        super().__init__(size)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, C, H // size, W // size]."""
        found = _max_of_windows(inputs, self.kernel_size)
        return super().forward(inputs) if found is None else found


class Pooled(nn.Sequential):
    """A chain and a max pooling of what it gives.

    On processors a CELU at the chain's end comes after the pooling: it never falls, so the values are the same, and there are a
    fourth of them. Where CELU rounds several to one, the largest is chosen then, not the first; their gradients are next to
    nothing. The importance, in eval mode, of a weight that only such gradients come to is left as the layers have it.
    """

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As Sequential's."""
        modules: list[Any] = [*self]
        if _is_transformed() or _is_watched(self) or not _can_pool_before_celu(modules, inputs):
            return cast("torch.Tensor", super().forward(inputs))  # type: ignore[no-untyped-call]
        (*before, celu), pool = modules
        pooled: torch.Tensor = pool(modules[0].through(before, inputs))
        return nn.functional.celu(pooled, celu.alpha, inplace=pooled.dtype in FULL_PRECISION)


def _can_pool_before_celu(modules: list[Any], inputs: torch.Tensor) -> bool:
    if [type(each) for each in modules] != [Chain, MaxPool] or any(_is_watched(each) for each in modules):
        return False
    chain = modules[0]
    usual = len(chain) > 1 and _is_plain_celu(chain[-1]) and not Chain.spares_bias(inputs)
    return usual and (_forgets_its_outputs(chain[-2]) or not torch.is_grad_enabled())


class GlobalMaxPool(nn.AdaptiveMaxPool2d):
    """The largest value of each channel; on GPUs by kernels of our own where the image is small and square."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to [B, C, 1, 1]."""
        height, width = inputs.shape[2:]
        found = _max_of_windows(inputs, height) if height == width else None
        return super().forward(inputs) if found is None else found


def _max_of_windows(inputs: torch.Tensor, size: Any) -> torch.Tensor | None:
    """None where our kernels do not work, or do not take these images."""
    filled = size <= LARGEST_WINDOW and not any(side % size for side in inputs.shape[2:])
    plain = inputs.numel() and inputs.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if not (Chain.spares_bias(inputs) and filled and plain and _is_table(inputs) and _kernels_work(inputs.device)):
        return None
    from cu_ray.models._max_pool import MaxOfWindows

    outputs: torch.Tensor = MaxOfWindows.apply(inputs, size)
    return outputs


def mean_head(channels: int, num_classes: int) -> nn.Sequential:
    """The mean over all places of the image, and the linear layer to logits."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))


def block_shapes(channels_in: int, channels: tuple[int, ...], blocks_each: int) -> list[tuple[int, int, int]]:
    """(channels in, channels, stride) of each residual block: stages of these channels, halving the image from the second on."""
    found = []
    for stage, channels_out in enumerate(channels):
        for block in range(blocks_each):
            found.append((channels_in, channels_out, 2 if stage and not block else 1))
            channels_in = channels_out
    return found
