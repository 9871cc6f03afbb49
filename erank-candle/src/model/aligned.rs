//! Tensors on the CPU that start at a line of the processor's caches, in large pages where the system has them.
//!
//! AMX multiplies tiles that cross lines three times as slowly, and only whole lines can be written past the caches.

use candle_core::{Device, Result, Tensor, WithDType};

use crate::kernels::buffer::use_large_pages;

/// Bytes of a line of the processor's caches.
pub(crate) const LINE: usize = 64;

/// Makes a tensor of zeros.
pub(crate) fn aligned_zeros((rows, columns): (usize, usize)) -> Result<Tensor> {
    aligned(vec![0f32; rows * columns + LINE], (rows, columns))
}

/// Creates a tensor of `shape` that starts at a cache line. `numbers` holds [`LINE`] more numbers than `shape` needs,
/// so that the start can be moved to a line. Pages that were not written yet become large pages.
pub(crate) fn aligned<T: WithDType>(mut numbers: Vec<T>, shape: (usize, usize)) -> Result<Tensor> {
    use_large_pages(&mut numbers);
    let start = numbers.as_ptr().align_offset(LINE).min(LINE);
    let length = numbers.len();
    Tensor::from_vec(numbers, length, &Device::Cpu)?.narrow(0, start, length - LINE)?.reshape(shape)
}
