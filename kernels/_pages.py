"""Where an edit's columns are in a memory of pages of D rows, for the kernels of the residual product."""

import triton
import triton.language as tl


@triton.jit
def page_of(columns_ptr, D, R):
    """The first row of the page that an edit lives on, which the first of its columns tells; 0 where that is no row."""
    row = tl.load(columns_ptr)
    return tl.where((row >= 0) & (row < R), row - row % D, 0)


@triton.jit
def column_of(row, page, D):
    """Columns of the page that begins at row `page`, of rows of memory; -1 for a number that is no row of it."""
    return tl.where((row >= page) & (row < page + D), row - page, -1)
