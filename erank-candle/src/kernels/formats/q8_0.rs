//! Q8_0 weights, the format of llama.cpp: each group of 32 weights of one output is 32 integers of 8 bits and
//! one scale, an F16 number. A weight is its integer times the scale.
//!
//! Activations are quantised as well, in groups of 32 with a scale in F32. For each group, the products of
//! integers are added without any rounding:
//!
//! ```text
//! for each group g, row r, column c:
//!     total = Σ_i lhs[g][r].numbers[i] · panel[g].weights[i][c]      integers
//!     sums[r][c] += total · (panel[g].scales[c] · lhs[g][r].scale)
//! ```
//!
//! The groups are added in order, with products and sums rounded apart. So all instruction sets give the same
//! bits.

#[cfg(target_arch = "x86_64")]
mod x86_64;

use bytemuck::{Pod, Zeroable};
use half::f16;

#[cfg(target_arch = "x86_64")]
use super::super::arch::x86_64::avx2::Avx2;
use super::super::arch::{InstructionSet, Isa, with_isa};
use super::super::micro_kernel::{KernelVisitor, MicroKernel};
use super::super::stored::StoredRow;
use super::super::tile::{Mr, NR, Prefetch, TileRows};
#[cfg(target_arch = "x86_64")]
use x86_64::PairProducts;

/// Numbers of a group, which have one scale.
const GROUP: usize = 32;
/// Pairs of numbers in a group.
const PAIRS: usize = GROUP / 2;
/// Largest integer that a number is rounded to.
const LARGEST: f32 = 127.0;

/// One group of 16 outputs, a step of a panel: 544 bytes.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Block {
    scales: [f16; NR],
    /// Two neighbouring inputs of each output side by side.
    weights: [[[i8; 2]; NR]; PAIRS],
}

/// One group of a row of activations.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Group {
    scale: f32,
    /// Integers from −127 to 127, as wide as the instructions for products read them.
    numbers: [[i16; 2]; PAIRS],
}

/// Calls the visitor with the best micro-kernel of an instruction set: products of pairs, else of single
/// integers.
pub(super) fn with_kernel<V: KernelVisitor>(set: InstructionSet, visitor: V) -> V::Output {
    #[cfg(target_arch = "x86_64")]
    if let Some(isa) = set.token::<Avx2>() {
        return visitor.visit(PairProducts(isa));
    }
    with_isa!(set, isa => visitor.visit(Products(isa)))
}

/// Calls the visitor with every micro-kernel of an instruction set.
#[cfg(test)]
pub(super) fn with_every_kernel<V: KernelVisitor + Copy>(
    set: InstructionSet,
    visitor: V,
) -> Vec<V::Output> {
    let mut outputs = vec![with_isa!(set, isa => visitor.visit(Products(isa)))];
    #[cfg(target_arch = "x86_64")]
    outputs.extend(set.token::<Avx2>().map(|isa| visitor.visit(PairProducts(isa))));
    outputs
}

/// The micro-kernel that every instruction set has, a plain loop.
#[derive(Debug, Clone, Copy)]
struct Products<I>(I);

impl<I: Isa> MicroKernel for Products<I> {
    type Isa = I;
    type Rows = Mr;
    type Lhs = Group;
    type Block = Block;
    const BLOCK_K: usize = GROUP;
    const PANELS: usize = 1;
    const KC: usize = 1024;
    const PREFETCH: Prefetch = Prefetch::NONE;

    #[inline(always)]
    fn isa(self) -> I {
        self.0
    }

    fn max_mr(self) -> Mr {
        I::MAX_MR
    }

    #[inline(always)]
    fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [Group]) {
        pack_lhs(rows, k, mr, lhs);
    }

    #[inline(always)]
    fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Block]) {
        pack_rows(rows, panel);
    }

    fn unpack_row(panel: &[Block], column: usize, out: &mut [f32]) {
        unpack_row(panel, column, out);
    }

    #[inline]
    fn multiply(
        self,
        lhs: &[Group],
        panels: &[&[Block]],
        mr: Mr,
        sums: &mut [[f32; NR]],
        _: Prefetch,
    ) {
        let mr = mr.rows();
        self.0.run(
            #[inline(always)]
            || {
                for (panel, sums) in panels.iter().zip(sums.chunks_exact_mut(mr)) {
                    for (block, groups) in panel.iter().zip(lhs.chunks_exact(mr)) {
                        let scales = block.scales.map(f16::to_f32);
                        for (group, sums) in groups.iter().zip(&mut *sums) {
                            multiply_group(group, block, &scales, sums);
                        }
                    }
                }
            },
        );
    }

    #[cfg(test)]
    fn round_weights(row: &[f32]) -> Vec<f32> {
        reference::round_weights(row)
    }

    #[cfg(test)]
    fn round_activations(row: &[f32]) -> Vec<f32> {
        reference::round_activations(row)
    }
}

#[inline(always)]
fn multiply_group(group: &Group, block: &Block, scales: &[f32; NR], sums: &mut [f32; NR]) {
    let mut totals = [0i32; NR];
    for ([x, y], weights) in group.numbers.iter().zip(&block.weights) {
        for (total, [a, b]) in totals.iter_mut().zip(weights) {
            *total += i32::from(*x) * i32::from(*a) + i32::from(*y) * i32::from(*b);
        }
    }
    for ((sum, total), scale) in sums.iter_mut().zip(totals).zip(scales) {
        *sum += total as f32 * (scale * group.scale);
    }
}

/// Quantises rows of `k` activations as `[groups][mr]`. Numbers past `k` are 0. If there are fewer than `mr`
/// rows, the places of the missing rows in `lhs` are not written.
#[inline(always)]
fn pack_lhs(rows: &[f32], k: usize, mr: usize, lhs: &mut [Group]) {
    for (r, row) in rows.chunks_exact(k).enumerate() {
        for (groups, numbers) in lhs.chunks_exact_mut(mr).zip(row.chunks(GROUP)) {
            let mut padded = [0.0; GROUP];
            padded[..numbers.len()].copy_from_slice(numbers);
            let (scale, inverse) = scale(&padded);
            let mut rounded = [0i16; GROUP];
            for (rounded, number) in rounded.iter_mut().zip(padded) {
                // Adding 1.5 · 2²³ rounds to an integer, ties to even, in the lowest bits.
                let bits = (number * inverse + 12_582_912.0).to_bits();
                *rounded = (bits as i32 - 12_582_912f32.to_bits() as i32) as i16;
            }
            groups[r] = Group { scale, numbers: bytemuck::cast(rounded) };
        }
    }
}

/// Quantises up to 16 rows of the same length into a panel. Numbers past a row's end are 0. If there are
/// fewer than 16 rows, the places of the missing rows in `panel` are not written.
#[inline(always)]
fn pack_rows(rows: &[StoredRow<'_>], panel: &mut [Block]) {
    for (index, block) in panel.iter_mut().enumerate() {
        for (column, row) in rows.iter().enumerate() {
            let start = row.len().min(index * GROUP);
            let length = (row.len() - start).min(GROUP);
            let mut numbers = [0.0; GROUP];
            row.part(start, length).to_f32(&mut numbers[..length]);
            let (scale, inverse) = scale(&numbers);
            block.scales[column] = f16::from_f32(scale);
            for (weights, [a, b]) in block.weights.iter_mut().zip(numbers.as_chunks().0) {
                weights[column] = [round(a * inverse), round(b * inverse)];
            }
        }
    }
}

/// Rounds as llama.cpp does when it makes a file: ties away from zero.
#[inline(always)]
fn round(number: f32) -> i8 {
    number.round() as i8
}

/// Returns the scale of a group and its inverse, or 0 twice for zeros. If a number is infinite or NaN, the
/// scale is NaN, so that every product with the group is NaN.
#[inline(always)]
fn scale(numbers: &[f32; GROUP]) -> (f32, f32) {
    let mut largest = [0f32; 8];
    let mut finite = [0f32; 8];
    for numbers in numbers.as_chunks::<8>().0 {
        for ((largest, finite), number) in largest.iter_mut().zip(&mut finite).zip(numbers) {
            *largest = largest.max(number.abs());
            *finite += number * 0.0;
        }
    }
    let largest = largest.into_iter().fold(0.0, f32::max);
    let scale = largest / LARGEST + finite.into_iter().sum::<f32>();
    (scale, if scale > 0.0 { 1.0 / scale } else { 0.0 })
}

/// Writes the first `out.len()` weights of one column of a panel.
fn unpack_row(panel: &[Block], column: usize, out: &mut [f32]) {
    for (block, out) in panel.iter().zip(out.chunks_mut(GROUP)) {
        let scale = block.scales[column].to_f32();
        let weights = block.weights.iter().flat_map(|pair| pair[column]);
        for (out, weight) in out.iter_mut().zip(weights) {
            *out = f32::from(weight) * scale;
        }
    }
}

/// Scalar code that rounds numbers as the format does, for the oracle.
#[cfg(test)]
mod reference {
    use super::*;

    pub(super) fn round_weights(row: &[f32]) -> Vec<f32> {
        let group = |group: &[f32]| {
            let scale = group.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            let kept = f16::from_f32(scale).to_f32();
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            group.iter().map(|x| (x * inverse).round() * kept).collect::<Vec<f32>>()
        };
        row.chunks(GROUP).flat_map(group).collect()
    }

    pub(super) fn round_activations(row: &[f32]) -> Vec<f32> {
        let group = |group: &[f32]| {
            let scale = group.iter().fold(0f32, |largest, x| largest.max(x.abs())) / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            group.iter().map(|x| (x * inverse).round_ties_even() * scale).collect::<Vec<f32>>()
        };
        row.chunks(GROUP).flat_map(group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::column_blocks::Columns;
    use super::super::super::gemm::PackedWeights;
    use super::super::super::packed_matrix::PackedMatrix;
    use super::super::super::stored::StoredMatrix;
    use super::super::super::tests::oracle;
    use super::*;

    #[derive(Clone, Copy)]
    struct Pack<'a>(&'a StoredMatrix<'a>);

    impl KernelVisitor for Pack<'_> {
        type Output = Box<dyn PackedWeights>;

        fn visit<K: MicroKernel>(self, kernel: K) -> Self::Output {
            Box::new(PackedMatrix::pack(kernel, self.0).expect("memory"))
        }
    }

    fn stored(numbers: &[f32]) -> Vec<[u8; 4]> {
        numbers.iter().map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn every_set_and_kernel_gives_the_same_bits() {
        for (rows, inputs, outputs) in [(1, 32, 16), (3, 70, 33), (9, 1100, 40), (40, 600, 17)] {
            let numbers: Vec<f32> = oracle::numbers(outputs * inputs, 32).collect();
            let numbers = stored(&numbers);
            let matrix = StoredMatrix::new([StoredRow::F32(&numbers)], inputs);
            let x: Vec<f32> = oracle::numbers(rows * inputs, 33).collect();
            let mut products = Vec::new();
            for set in InstructionSet::available() {
                for weights in with_every_kernel(set, Pack(&matrix)) {
                    let mut y = vec![f32::NAN; rows * outputs];
                    weights.project(&x, None, Columns::all(&mut y, outputs));
                    products.push(y);
                }
            }
            assert!(products.len() > 1);
            for product in &products {
                assert_eq!(product, &products[0], "{rows} {inputs} {outputs}");
            }
        }
    }

    #[test]
    fn numbers_that_are_not_finite_give_nan() {
        let inputs = 64;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.5; inputs];
            numbers[40] = bad;
            let good = vec![0.5; inputs];
            for (weights, x) in [(&numbers, &good), (&good, &numbers)] {
                let weights = stored(weights);
                let matrix = StoredMatrix::new([StoredRow::F32(&weights)], inputs);
                for set in InstructionSet::available() {
                    for weights in with_every_kernel(set, Pack(&matrix)) {
                        let mut y = [0.0];
                        weights.project(x, None, Columns::all(&mut y, 1));
                        assert!(y[0].is_nan(), "{bad} gives {} on {}", y[0], set.name());
                    }
                }
            }
        }
    }
}
