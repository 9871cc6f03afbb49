//! The micro-kernels of attention, by the type of the KV cache. They are independent of the weights' formats,
//! so weights and cache can have different types.

use std::marker::PhantomData;

use bytemuck::Pod;
use half::bf16;

#[cfg(target_arch = "aarch64")]
use super::arch::aarch64::neon_bf16::NeonBf16 as PairsIsa;
#[cfg(target_arch = "x86_64")]
use super::arch::x86_64::amx::Amx;
#[cfg(target_arch = "x86_64")]
use super::arch::x86_64::avx512_bf16::Avx512Bf16 as PairsIsa;
use super::arch::{InstructionSet, Isa, WideningIsa, with_isa};
use super::attention::{self, MAX_BLOCKS, Run, Softmax};
use super::element::Element;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use super::pack::pack_groups;
use super::pack::pack_widened;
use super::tile::{MAX_ROWS, Mr, NR, Prefetch, TileRows};
#[cfg(target_arch = "x86_64")]
use super::tile_attention;

/// Multiplies queries with a block's keys, and attention weights with its values.
///
/// A value holds the token of its instruction set, as a weight's micro-kernel does.
pub(crate) trait AttentionKernel: Copy + Send + Sync {
    /// The instruction set.
    type Isa: Isa;
    /// The type that keys and values are stored in.
    type Element: CacheElement;
    /// `DEPTH` numbers of a packed query.
    type Query: Pod + Default + Send + Sync;
    /// Blocks of a sequence that are always multiplied together, from a multiple of this number on.
    const BLOCKS_TOGETHER: usize = 1;
    /// Blocks whose scores are computed before their weights if there are many queries, up to [`MAX_BLOCKS`].
    const BLOCKS_AT_ONCE: usize = 1;
    /// Tokens whose queries are computed by one thread, if there are enough.
    const TOKENS_OF_A_THREAD: usize = 64;

    /// Returns the token of the instruction set.
    fn isa(self) -> Self::Isa;

    /// Packs queries of `head_dim` numbers, rounded to the cache's type, as `[head_dim / DEPTH][mr]`.
    /// If there are fewer than `mr` queries, the places of the missing queries in `packed` are not written.
    fn pack_queries(queries: &[f32], head_dim: usize, mr: usize, packed: &mut [Self::Query]);

    /// Sets `scores`, `[blocks][mr][16]`, to the products of queries and the keys of several blocks of 16 tokens. The
    /// keys of a block are `[head_dim / DEPTH][16][DEPTH]` and their scales.
    fn scores(
        self,
        queries: &[Self::Query],
        keys: &[&[Self::Element]],
        mr: Mr,
        scores: &mut [[f32; NR]],
    );

    /// Adds the products of attention weights, `[blocks][mr][16 tokens]`, rounded as activations
    /// ([`Element::round_activation`]), and the tokens' values to `sums`, `[panels][mr][16]`. The values of a block are
    /// panels of `[16 / DEPTH][16][DEPTH]` and their scales. `visible` has a number of tokens for each block.
    ///
    /// Weights of a block from token `visible` on must be 0. The values of these tokens are not read, except for those
    /// in the same word as a visible token's value. `next_keys` may be prefetched meanwhile.
    fn weigh_values(
        self,
        weights: &[[f32; NR]],
        values: &[&[Self::Element]],
        mr: Mr,
        visible: &[usize],
        next_keys: &[&[Self::Element]],
        sums: &mut [[f32; NR]],
    );

    /// Adds the blocks of a run to the softmax of its queries.
    fn add_blocks(self, run: &Run<'_, Self::Element>, state: &mut Softmax<'_>) {
        attention::add_blocks(self, run, state);
    }
}

/// Work for any type of kernel of a cache of type `E`. It is a trait because closures cannot be generic.
pub(crate) trait CacheVisitor<E: CacheElement> {
    type Output;

    /// Does the work with a kernel in its own type.
    fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) -> Self::Output;
}

/// A type that a KV cache can have.
///
/// A token's key, or value, of one KV head is stored as numbers of this type and a scale: `number · scale`.
pub(crate) trait CacheElement: Element {
    /// Length of the scales of 16 tokens in memory, in numbers of this type. It is 0 if every scale is 1.
    const SCALES: usize = 0;

    /// Changes a query or a key so that it loses less when it is rounded. The product of a changed query and a changed
    /// key is that of the query and the key.
    #[inline(always)]
    fn spread(_: &mut [f32]) {}

    /// Returns the scale of a key or a value.
    #[inline(always)]
    fn scale(_: &[f32]) -> f32 {
        1.0
    }

    /// Writes the scale of the token in `slot` of a block.
    #[inline(always)]
    fn write_scale(_: &mut [Self], _slot: usize, _scale: f32) {}

    /// Returns the scales of a block's tokens.
    #[inline(always)]
    fn scales(_: &[Self]) -> [f32; NR] {
        [1.0; NR]
    }

    /// Calls the visitor with the best kernel that an instruction set has for a cache of this type. Every set has
    /// [`Widened`].
    fn with_kernel<V: CacheVisitor<Self>>(set: InstructionSet, visitor: V) -> V::Output {
        with_isa!(set, isa => visitor.visit(Widened::new(isa.widening())))
    }

    /// Calls the visitor with every kernel that an instruction set has for a cache of this type.
    #[cfg(test)]
    fn with_every_kernel<V: CacheVisitor<Self> + Copy>(
        set: InstructionSet,
        visitor: V,
    ) -> Vec<V::Output> {
        vec![Self::with_kernel(set, visitor)]
    }
}

impl CacheElement for f32 {}

impl CacheElement for bf16 {
    fn with_kernel<V: CacheVisitor<Self>>(set: InstructionSet, visitor: V) -> V::Output {
        #[cfg(target_arch = "x86_64")]
        if let Some(isa) = set.token::<Amx>() {
            return visitor.visit(Tiles(isa));
        }
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        if let Some(isa) = set.token::<PairsIsa>() {
            return visitor.visit(Pairs(isa));
        }
        with_isa!(set, isa => visitor.visit(Widened::new(isa.widening())))
    }

    #[cfg(test)]
    fn with_every_kernel<V: CacheVisitor<Self> + Copy>(
        set: InstructionSet,
        visitor: V,
    ) -> Vec<V::Output> {
        let mut outputs = vec![with_isa!(set, isa => visitor.visit(Widened::new(isa.widening())))];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        outputs.extend(set.token::<PairsIsa>().map(|isa| visitor.visit(Pairs(isa))));
        #[cfg(target_arch = "x86_64")]
        outputs.extend(set.token::<Amx>().map(|isa| visitor.visit(Tiles(isa))));
        outputs
    }
}

/// 8 bits: the numbers are integers, and each token has a scale in BF16.
///
/// Some channels of Qwen3's keys are many times larger than the others, and one scale for all would round the others to
/// little. The Walsh–Hadamard transform spreads each channel over all (QuaRot, <https://arxiv.org/abs/2404.00456>).
impl CacheElement for i8 {
    const SCALES: usize = size_of::<[bf16; NR]>();

    #[inline(always)]
    fn spread(numbers: &mut [f32]) {
        walsh_hadamard(numbers);
    }

    #[inline(always)]
    fn scale(numbers: &[f32]) -> f32 {
        // The bits of positive numbers have the order of the numbers, and those of NaN are above all.
        let magnitude = |number: &f32| number.to_bits() & 0x7fff_ffff;
        let largest = numbers.iter().map(magnitude).fold(0, u32::max);
        let scale = f32::from_bits(largest) / 127.0;
        if scale.is_nan() {
            return f32::NAN;
        }
        // Rounded up to BF16, so that no number exceeds 127.
        f32::from_bits((scale.to_bits() + 0xffff) & 0xffff_0000)
    }

    #[inline(always)]
    fn write_scale(scales: &mut [i8], slot: usize, scale: f32) {
        let scales: &mut [[u8; 2]] = bytemuck::cast_slice_mut(scales);
        scales[slot] = <bf16 as Element>::round(scale).to_ne_bytes();
    }

    #[inline(always)]
    fn scales(scales: &[i8]) -> [f32; NR] {
        let scales: &[[u8; 2]] = bytemuck::cast_slice(scales);
        std::array::from_fn(|slot| Element::widen(bf16::from_ne_bytes(scales[slot])))
    }
}

/// Multiplies with the orthonormal Walsh–Hadamard matrix of the largest power of two that divides the length, part by
/// part. The matrix is its own inverse.
#[inline(always)]
fn walsh_hadamard(numbers: &mut [f32]) {
    let size = 1 << numbers.len().trailing_zeros();
    for part in numbers.chunks_exact_mut(size) {
        let mut half = size / 2;
        while half > 0 {
            for pair in part.chunks_exact_mut(2 * half) {
                let (left, right) = pair.split_at_mut(half);
                for (left, right) in left.iter_mut().zip(right) {
                    (*left, *right) = (*left + *right, *left - *right);
                }
            }
            half /= 2;
        }
    }
    let norm = 1.0 / (size as f32).sqrt();
    numbers.iter_mut().for_each(|number| *number *= norm);
}

/// A cache of type `E`, multiplied in F32 one number at a time on the instruction set `I`.
#[derive(Debug, Clone, Copy)]
struct Widened<I, E> {
    isa: I,
    element: PhantomData<E>,
}

/// Panels of values that are multiplied at once.
const MAX_PANELS: usize = 4;

/// The prefetch of [`Widened`]. It was measured on Zen 3 (see docs/kernels.md).
const PREFETCH: Prefetch = Prefetch { distance: 4096, stride: 64 };

impl<I: WideningIsa, E: CacheElement> Widened<I, E> {
    fn new(isa: I) -> Self {
        Self { isa, element: PhantomData }
    }
}

impl<I: WideningIsa, E: CacheElement> AttentionKernel for Widened<I, E> {
    type Isa = I;
    type Element = E;
    type Query = E::Lhs;

    #[inline(always)]
    fn isa(self) -> I {
        self.isa
    }

    #[inline(always)]
    fn pack_queries(queries: &[f32], head_dim: usize, mr: usize, packed: &mut [E::Lhs]) {
        pack_widened::<E>(queries, head_dim, mr, packed);
    }

    #[inline(always)]
    fn scores(self, queries: &[E::Lhs], keys: &[&[E]], mr: Mr, scores: &mut [[f32; NR]]) {
        for (keys, scores) in keys.iter().zip(scores.chunks_exact_mut(mr.rows())) {
            let (keys, scales) = keys.split_at(keys.len() - E::SCALES);
            scores.fill([0.0; NR]);
            let keys = bytemuck::cast_slice(keys);
            self.isa.multiply_widened::<E>(queries, &[keys], mr, scores, PREFETCH);
            if E::SCALES > 0 {
                let scales = E::scales(scales);
                for row in scores {
                    row.iter_mut().zip(scales).for_each(|(score, scale)| *score *= scale);
                }
            }
        }
    }

    #[inline(always)]
    fn weigh_values(
        self,
        weights: &[[f32; NR]],
        values: &[&[E]],
        mr: Mr,
        visible: &[usize],
        _: &[&[E]],
        sums: &mut [[f32; NR]],
    ) {
        let of_blocks = weights.chunks_exact(mr.rows()).zip(values).zip(visible);
        for ((weights, values), visible) in of_blocks {
            self.weigh_block(weights, values, mr, *visible, sums);
        }
    }
}

impl<I: WideningIsa, E: CacheElement> Widened<I, E> {
    /// Adds the products of the weights and values of one block to the sums.
    #[inline(always)]
    fn weigh_block(
        self,
        weights: &[[f32; NR]],
        values: &[E],
        mr: Mr,
        visible: usize,
        sums: &mut [[f32; NR]],
    ) {
        let (values, scales) = values.split_at(values.len() - E::SCALES);
        let mut scaled = [[0.0; NR]; MAX_ROWS];
        let weights = if E::SCALES == 0 {
            weights
        } else {
            // Scales from `visible` on may be those of other sequences, which may be NaN.
            let scales = &E::scales(scales)[..visible];
            for (scaled, weights) in scaled.iter_mut().zip(weights) {
                let products = weights.iter().zip(scales).map(|(weight, scale)| weight * scale);
                scaled.iter_mut().zip(products).for_each(|(scaled, product)| *scaled = product);
            }
            &scaled[..weights.len()]
        };
        let mut lhs = [[0.0; NR]; MAX_ROWS];
        let lhs: &mut [E::Lhs] = bytemuck::cast_slice_mut(&mut lhs[..mr.rows()]);
        pack_widened::<E>(weights.as_flattened(), NR, mr.rows(), lhs);
        let lhs = &lhs[..visible.div_ceil(E::DEPTH) * mr.rows()];
        let values: &[E::Block] = bytemuck::cast_slice(values);
        // A cache in BF16 or F32 is limited by memory, which is read in order if one panel is multiplied at a time. In 8
        // bits, arithmetic is the limit, and with several panels at once an addition need not wait for the last.
        let at_once = if E::SCALES == 0 { 1 } else { MAX_PANELS };
        let panel_size = NR / E::DEPTH;
        let groups = values.chunks(at_once * panel_size);
        for (values, sums) in groups.zip(sums.chunks_mut(at_once * mr.rows())) {
            let mut panels: [&[E::Block]; MAX_PANELS] = Default::default();
            let count = values.len() / panel_size;
            for (panel, values) in panels.iter_mut().zip(values.chunks_exact(panel_size)) {
                *panel = values;
            }
            self.isa.multiply_widened::<E>(lhs, &panels[..count], mr, sums, PREFETCH);
        }
    }
}

/// A BF16 cache, multiplied two numbers at a time (`vdpbf16ps`, `bfdot`).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Debug, Clone, Copy)]
struct Pairs(PairsIsa);

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl AttentionKernel for Pairs {
    type Isa = PairsIsa;
    type Element = bf16;
    type Query = [bf16; 2];
    const BLOCKS_AT_ONCE: usize = MAX_BLOCKS;

    #[inline(always)]
    fn isa(self) -> PairsIsa {
        self.0
    }

    #[inline(always)]
    fn pack_queries(queries: &[f32], head_dim: usize, mr: usize, packed: &mut [[bf16; 2]]) {
        pack_groups(queries, head_dim, mr, packed);
    }

    #[inline(always)]
    fn scores(self, queries: &[[bf16; 2]], keys: &[&[bf16]], mr: Mr, scores: &mut [[f32; NR]]) {
        scores.fill([0.0; NR]);
        self.0.multiply_keys(queries, &as_pairs(keys)[..keys.len()], mr, scores);
    }

    #[inline(always)]
    fn weigh_values(
        self,
        weights: &[[f32; NR]],
        values: &[&[bf16]],
        mr: Mr,
        visible: &[usize],
        next_keys: &[&[bf16]],
        sums: &mut [[f32; NR]],
    ) {
        let mut narrow = [[bf16::ZERO; NR]; MAX_BLOCKS * MAX_ROWS];
        let narrow = &mut narrow[..weights.len()];
        for (narrow, weights) in narrow.iter_mut().zip(weights) {
            for (narrow, weight) in narrow.iter_mut().zip(weights) {
                // The weights are rounded, so the lower half of their bits is 0.
                *narrow = bf16::from_bits((weight.to_bits() >> 16) as u16);
            }
        }
        let values = &as_pairs(values)[..values.len()];
        self.0.weigh_values(narrow, values, mr, visible, &as_pairs(next_keys), sums);
    }
}

/// Returns the keys or values of up to [`MAX_BLOCKS`] blocks as pairs of numbers. Missing blocks are empty.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
fn as_pairs<'a>(blocks: &[&'a [bf16]]) -> [&'a [[[bf16; 2]; NR]]; MAX_BLOCKS] {
    let mut pairs: [&[[[bf16; 2]; NR]]; MAX_BLOCKS] = Default::default();
    for (pairs, block) in pairs.iter_mut().zip(blocks) {
        *pairs = bytemuck::cast_slice(block);
    }
    pairs
}

/// A BF16 cache, multiplied in AMX's tiles, or with the bits of tiles. Heads that do not divide into tiles are multiplied
/// as by [`Pairs`].
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
struct Tiles(Amx);

#[cfg(target_arch = "x86_64")]
impl Tiles {
    fn pairs(self) -> Pairs {
        Pairs(self.0.vectors())
    }
}

#[cfg(target_arch = "x86_64")]
impl AttentionKernel for Tiles {
    type Isa = PairsIsa;
    type Element = bf16;
    type Query = [bf16; 2];
    const BLOCKS_TOGETHER: usize = tile_attention::BLOCKS_TOGETHER;
    const TOKENS_OF_A_THREAD: usize = 256;

    #[inline(always)]
    fn isa(self) -> PairsIsa {
        self.0.vectors()
    }

    #[inline(always)]
    fn pack_queries(queries: &[f32], head_dim: usize, mr: usize, packed: &mut [[bf16; 2]]) {
        Pairs::pack_queries(queries, head_dim, mr, packed);
    }

    #[inline(always)]
    fn scores(self, queries: &[[bf16; 2]], keys: &[&[bf16]], mr: Mr, scores: &mut [[f32; NR]]) {
        self.pairs().scores(queries, keys, mr, scores);
    }

    #[inline(always)]
    fn weigh_values(
        self,
        weights: &[[f32; NR]],
        values: &[&[bf16]],
        mr: Mr,
        visible: &[usize],
        next_keys: &[&[bf16]],
        sums: &mut [[f32; NR]],
    ) {
        self.pairs().weigh_values(weights, values, mr, visible, next_keys, sums);
    }

    fn add_blocks(self, run: &Run<'_, bf16>, state: &mut Softmax<'_>) {
        match tile_attention::divides(run.layout.head_dim) {
            true => tile_attention::add_blocks(self.0, run, state),
            false => attention::add_blocks(self.pairs(), run, state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::oracle;
    use super::*;

    #[test]
    fn walsh_hadamard_keeps_products_and_is_its_own_inverse() {
        for length in [1, 2, 24, 30, 64, 80, 128] {
            let [a, b] = [1, 2].map(|seed| oracle::numbers(length, seed).collect::<Vec<f32>>());
            let (mut changed_a, mut changed_b) = (a.clone(), b.clone());
            walsh_hadamard(&mut changed_a);
            walsh_hadamard(&mut changed_b);
            let product =
                |a: &[f32], b: &[f32]| -> f32 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
            let difference = product(&a, &b) - product(&changed_a, &changed_b);
            assert!(difference.abs() < 1e-5 * length as f32, "{length}: {difference}");
            walsh_hadamard(&mut changed_a);
            let back = a.iter().zip(&changed_a).all(|(a, back)| (a - back).abs() < 1e-5);
            assert!(back, "{length}: {a:?} {changed_a:?}");
        }
    }

    /// Without the transform, a channel that is 20 times larger takes four of eight bits from the others.
    #[test]
    fn walsh_hadamard_spreads_large_channels() {
        let mut key: Vec<f32> = oracle::numbers(128, 1).collect();
        key[5] = 20.0;
        let before = <i8 as CacheElement>::scale(&key);
        i8::spread(&mut key);
        assert!(<i8 as CacheElement>::scale(&key) < before / 4.0);
    }

    #[test]
    fn scale_lets_no_number_exceed_127_and_is_nan_with_nan() {
        for largest in [1e-30_f32, 0.1, 1.0, 127.0, 1e30, f32::MAX] {
            let scale = <i8 as CacheElement>::scale(&[0.0, -largest, largest / 3.0]);
            assert!(scale >= largest / 127.0 && scale <= largest / 127.0 * 1.01, "{largest:e}");
            let rounded = <i8 as Element>::round(-largest / scale);
            assert!(rounded == -126 || rounded == -127, "{largest:e}: {rounded}");
        }
        assert_eq!(<i8 as CacheElement>::scale(&[0.0, -0.0]), 0.0);
        assert_eq!(<i8 as CacheElement>::scale(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
        for nan in [f32::NAN, f32::from_bits(0x7fff_ffff), f32::from_bits(0xff80_0001)] {
            assert!(<i8 as CacheElement>::scale(&[1.0, nan]).is_nan());
        }
    }
}
