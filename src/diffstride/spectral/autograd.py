"""Pool the axes of a tensor, with gradients of the input and of the strides."""

from typing import Any

import torch
from torch import Tensor

from diffstride._torch_compat import has_tangent, is_jit_tracing, is_transformed
from diffstride.spectral.axis_plan import Axis
from diffstride.spectral.map_product import pool_map, spread_map
from diffstride.spectral.memory_format import Layout, full_precision, layout_of
from diffstride.spectral.portable import pool_by_constants


def pool(x: Tensor, axes: tuple[Axis, ...], strides: Tensor | None = None) -> Tensor:
    """Pool the last axes of ``x`` as planned: ``y = A_1 … A_n x``.

    Args:
        x: floating point, ``(…, N_1, …, N_n)``.
        axes: how each of these axes is pooled.
        strides: the parameter to receive a gradient, one stride for each axis or one for all.
    """
    with full_precision(x):
        if is_jit_tracing():
            return pool_by_constants(x, axes)
        if strides is not None and needs_derivative(strides):
            if has_tangent(strides) or has_tangent(x):
                raise NotImplementedError(
                    "learned strides have no forward-mode derivatives (jvp, jacfwd, dual numbers): "
                    "use reverse mode (backward, grad, vjp, jacrev), or fix the strides, with "
                    "trainable=False or strides.requires_grad_(False)"
                )
            return SpectralPool.apply(x, strides.expand(len(axes)), axes)[0]
        layout = layout_of(x, len(axes))
        # Where x needs a gradient, the products are plain operations, which double backward, vmap
        # and torch.export support.
        recorded = x.requires_grad and torch.is_grad_enabled()
        return layout.leave(pool_map(layout.enter(x), axes, layout, in_blocks=not recorded)[0])


def needs_derivative(strides: Tensor) -> bool:
    """Whether a derivative by ``strides`` is asked for, in reverse or in forward mode."""
    return (strides.requires_grad and torch.is_grad_enabled()) or has_tangent(strides)


class SpectralPool(torch.autograd.Function):
    """``y = A_1 … A_n x`` with the gradients of ``x`` and of the strides.

    Along an axis ``dA/ds = slope * U_r D_r^T``, hence ``grad_s = slope * <U_r^T grad_y, D_r^T x>``.
    The forward pass saves only ``D_r^T x``, the few bins on the ramp, about ``4R/N`` of ``x``.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, strides: Tensor, axes: tuple[Axis, ...]) -> tuple[Tensor, ...]:
        layout = layout_of(x, len(axes))
        dense, on_ramp = pool_map(layout.enter(x), axes, layout, learning=True)
        y = layout.leave(dense)
        # An in-place ReLU may follow, and autograd forbids in-place changes of an output that is a
        # view. A detached tensor is no view; in a transform only a copy is none.
        return (y.clone() if is_transformed(y) else y.data), *on_ramp

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        x, strides, ctx.axes = inputs
        ctx.layout = layout_of(x, len(ctx.axes))
        ctx.strides_dtype = strides.dtype
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grads[0] is None:
            return None, None, None
        spread = SpectralSpread.apply if torch.is_grad_enabled() else SpectralSpread.forward
        with full_precision(grads[0]):
            grad_x, grad_strides = spread(grads[0], ctx.axes, ctx.layout, *ctx.saved_tensors)
        return grad_x, grad_strides.to(ctx.strides_dtype), None


class SpectralSpread(torch.autograd.Function):
    """The gradients of `SpectralPool`; differentiating them raises an error.

    torch's ``once_differentiable`` does this too, but returns zeros inside `torch.func`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad: Tensor, axes: tuple[Axis, ...], layout: Layout, *on_ramp: Tensor
    ) -> tuple[Tensor, Tensor]:
        grad_x, products = spread_map(layout.enter(grad), axes, layout, on_ramp)
        grad_strides = [axis.slope * p for axis, p in zip(axes, products, strict=True)]
        return layout.leave(grad_x), torch.stack(grad_strides)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise NotImplementedError(
            "learned strides have no second derivatives: for a gradient penalty, a Hessian or "
            "meta-learning fix the strides, with trainable=False or strides.requires_grad_(False)"
        )
