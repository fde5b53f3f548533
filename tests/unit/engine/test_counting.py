"""The counter against small graphs that were counted by hand. Legend: B/s bytes, all float32 (4 B) unless told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as functional
import torch.utils.checkpoint
from torch import nn

from lora_train.engine.counting import META, StepCounter, Work, counting


def made(*shape: int, **options: object) -> torch.Tensor:
    return torch.empty(*shape, device=META, **options)


def counted(work: Callable[[], object]) -> StepCounter:
    with counting() as counter:
        work()
    return counter


def test_products_and_views() -> None:
    """softmax((x w' + b)' * 2): an addmm, a multiplication, a softmax; two transposes are views.

    x (3, 4), w (5, 4), b (5): the addmm reads 5 + 12 + 20 numbers and writes 15, the other two read and write 15 each:
    52 + 30 + 30 = 112 numbers. 2 * 3 * 4 * 5 = 120 FLOPs; only products, convolutions and attention count.
    """
    x, w, b = made(3, 4), made(5, 4), made(5)
    counter = counted(lambda: torch.softmax(functional.linear(x, w, b).t() * 2, dim=-1))
    assert counter.calls == {"addmm": 1, "mul": 1, "_softmax": 1}
    assert counter.total == Work(kernels=3, bytes_moved=4 * 112, flops=120, host_syncs=0)


def test_products_that_are_added_in_place() -> None:
    """y (3, 5) += x w', alpha being a factor of the product: reads 15 + 12 + 20 numbers, writes 15; 120 FLOPs."""
    x, w, y = made(3, 4), made(5, 4), made(3, 5)
    counter = counted(lambda: y.addmm_(x, w.t(), alpha=0.5))
    assert counter.total == Work(kernels=1, bytes_moved=4 * 62, flops=120, host_syncs=0)


def test_sums_of_products() -> None:
    """y (3, 5) += a_1 b_1 + a_2 b_2 with a (2, 3, 4), b (2, 4, 5): reads 15 + 24 + 40, writes 15; 2 * 120 FLOPs."""
    a, b, y = made(2, 3, 4), made(2, 4, 5), made(3, 5)
    assert counted(lambda: y.addbmm_(a, b)).total == Work(kernels=1, bytes_moved=4 * 94, flops=240, host_syncs=0)


def test_convolution_forward_and_backward() -> None:
    """A frozen 3 x 3 convolution of bf16 (2 B), then a sum: what comes back is the input's gradient alone.

    x (1, 2, 8, 8), w (4, 2, 3, 3), b (4), y (1, 4, 8, 8): 128, 72, 4 and 256 numbers.
    Forward: the convolution reads 128 + 72 + 4 and writes 256; the sum reads 256 and writes 1. The gradient that all
    begins with is ones_like of the sum, which reads and writes 1, and is made before the backward pass.
    Backward: expanded over y, it is a view of 1 number; convolution_backward reads 1 + 128 + 72 and writes 128.
    FLOPs: 2 * 8 * 8 * 4 * 2 * 9 = 9216 each way.
    """
    x = made(1, 2, 8, 8, dtype=torch.bfloat16, requires_grad=True)
    layer = nn.Conv2d(2, 4, 3, padding=1, device=META, dtype=torch.bfloat16).requires_grad_(False)

    def work() -> None:
        layer(x).sum().backward()

    counter = counted(work)
    assert counter.calls == {"convolution": 1, "sum": 1, "ones_like": 1, "convolution_backward": 1}
    assert counter.work["other"] == Work(3, 2 * (460 + 257 + 2), 9216, 0)
    assert counter.work["backward"] == Work(1, 2 * (1 + 128 + 72 + 128), 9216, 0)


def test_attention_is_one_each_way() -> None:
    """q, k, v (1, 2, 16, 8): two products of 2 * 2 * 16 * 16 * 8 = 8192 FLOPs forward, five backward (one again)."""
    q = made(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)
    counter = counted(lambda: functional.scaled_dot_product_attention(q, q, q).sum().backward())
    attention = {name: times for name, times in counter.calls.items() if "attention" in name}
    assert attention == {
        "_scaled_dot_product_flash_attention": 1,
        "_scaled_dot_product_flash_attention_backward": 1,
    }
    assert counter.total.flops == (2 + 5) * 8192


def test_autograds_calls_are_the_backward_pass_and_what_follows_is_clip() -> None:
    """a * a, summed; backward: the expanded gradient (1 number) times a, twice, and the sum of both.

    The products read 1 + 10 and write 10 each, the sum reads 20 and writes 10. Then the gradient is halved in place.
    """
    a = made(10, requires_grad=True)

    def work() -> None:
        (a * a).sum().backward()
        assert a.grad is not None
        a.grad.mul_(0.5)

    counter = counted(work)
    assert counter.work["backward"] == Work(3, 4 * (21 + 21 + 30), 0, 0)
    assert counter.work["clip"] == Work(1, 4 * 20, 0, 0)


def test_layout_copies_count() -> None:
    """contiguous() of what is contiguous is nothing; of a transposed matrix a copy, which reads 6 and writes 6."""
    x = made(2, 3)
    assert counted(x.contiguous).total == Work()
    assert counted(lambda: x.t().contiguous()).total == Work(1, 4 * 12, 0, 0)


def test_convolutions_are_laid_out_as_cudnn_does() -> None:
    """Channels-last weights make the output so; group norm asks CUDA for contiguous input: a copy of its own."""
    layer = nn.Conv2d(4, 8, 3, device=META).requires_grad_(False)
    norm = nn.GroupNorm(2, 8, device=META).requires_grad_(False)
    x = made(1, 4, 6, 6)
    assert counted(lambda: norm(layer(x))).calls["clone"] == 0
    layer.to(memory_format=torch.channels_last)
    assert counted(lambda: norm(layer(x))).calls["clone"] == 1


def test_a_fused_optimizer_step_is_one() -> None:
    """One call for all parameters; another adds 1 to all steps. It reads p, g, m, v and steps, writes p, m, v, steps.

    Two parameters of 6 and 4 numbers: 40 read and 30 or, with the gradients (which it may unscale), 40 written.
    """
    parameters = [nn.Parameter(made(6)), nn.Parameter(made(4))]
    with counting() as counter:
        optimizer = torch.optim.AdamW(parameters, fused=True)
        for parameter in parameters:
            parameter.grad = made(*parameter.shape)
        optimizer.step()
        counter.restart()
        optimizer.step()
    assert counter.calls["_fused_adamw_"] == 1
    assert counter.total.kernels == 2
    assert 4 * 70 <= counter.total.bytes_moved <= 4 * 80 + 4 * 3 * 4


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("_local_scalar_dense", lambda x: x.sum().item()),
        ("_local_scalar_dense", lambda x: bool(x.sum() > 0)),
        ("nonzero", lambda x: x.nonzero()),
        ("equal", lambda x: torch.equal(x, x)),
        ("_to_copy", lambda x: x.cpu()),
        ("_to_copy", lambda x: torch.zeros(3).to(x.device)),
        ("_to_copy", lambda x: torch.tensor([1.0], device=x.device)),
        ("copy_", lambda x: x.copy_(torch.zeros(3))),
        ("copy_", lambda x: torch.zeros(3).copy_(x)),
    ],
)
def test_waits_are_found(name: str, work: Callable[[torch.Tensor], object]) -> None:
    counter = counted(lambda: work(made(3)))
    assert counter.syncs == {name: 1}
    assert counter.total.host_syncs == 1


def test_what_does_not_wait() -> None:
    x = made(3)

    def work() -> None:
        x.add_(2.0)
        x.mul_(torch.tensor(3.0))
        torch.zeros(3).to(META, non_blocking=True)
        torch.zeros(3).sum().item()

    counter = counted(work)
    assert counter.total.host_syncs == 0
    assert counter.total.kernels == 3


def test_peak_counts_what_is_alive_together() -> None:
    """100 numbers stay, 50 come and go before 80 come: at most 180 at a time. Views take nothing."""
    with counting() as counter:
        kept = made(100)
        passing = made(50)
        assert counter.peak_bytes == 4 * 150
        del passing
        other = made(80)
        kept.view(10, 10).t()
        assert counter.peak_bytes == 4 * 180
        del other
        counter.restart()
        assert counter.peak_bytes == 4 * 100


def test_saved_activations_are_alive_until_the_backward_pass() -> None:
    """exp keeps its result of 1000 numbers for the backward pass, though nothing else holds it."""
    x = made(1000, requires_grad=True)
    with counting() as counter:
        total = x.exp().sum()
        counter.restart()
        assert counter.peak_bytes >= 4 * 1000
        total.backward()
        counter.restart()
        assert counter.peak_bytes < 4 * 2100


def test_what_checkpointing_does_again_belongs_to_the_backward_pass() -> None:
    """Attention and its product are done in the forward pass, again in the backward pass, and back."""
    q = made(1, 2, 16, 8, dtype=torch.bfloat16, requires_grad=True)

    def block(x: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(x, x, x) * 2

    def work() -> None:
        torch.utils.checkpoint.checkpoint(block, q, use_reentrant=False).sum().backward()

    counter = counted(work)
    assert counter.work["other"].flops == 2 * 8192
    assert counter.work["backward"].flops == (2 + 5) * 8192
    assert counter.calls["_scaled_dot_product_flash_attention"] == 2
