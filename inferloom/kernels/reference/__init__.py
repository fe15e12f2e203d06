"""The operators in torch: right everywhere, on whatever device the tensors are on."""

from inferloom.kernels.reference.kernels import ReferenceKernels

__all__ = ["ReferenceKernels"]
