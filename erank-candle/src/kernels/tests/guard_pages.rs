//! Tests of every kernel on slices that start or end at a guard page, which may be neither read nor written:
//! an out-of-bounds access ends the process with SIGSEGV. Prefetches beyond the slices are harmless, and are
//! part of the tests.
#![expect(unsafe_code, reason = "pages become inaccessible, and slices are made of the rest")]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapRaw};

/// The position of a slice between two guard pages.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Place {
    /// The slice touches neither page.
    Free,
    /// The first element follows a guard page.
    Start,
    /// The last element precedes a guard page.
    End,
}

/// A slice between two guard pages.
#[derive(Debug)]
pub(in super::super) struct Guarded<T> {
    map: MmapRaw,
    /// Bytes from the start of the map to the first element.
    offset: usize,
    length: usize,
    elements: PhantomData<T>,
}

/// The largest page size of the systems that the tests run on.
const PAGE: usize = 1 << 16;

impl<T: Copy> Guarded<T> {
    /// Copies elements to a map of its own.
    pub(in super::super) fn new(place: Place, elements: &[T]) -> Self {
        assert!(align_of::<T>() <= PAGE);
        let size = size_of_val(elements);
        let accessible = (size + PAGE).next_multiple_of(PAGE);
        let map = MmapRaw::from(MmapMut::map_anon(PAGE + accessible + PAGE).expect("memory"));
        let offset = match place {
            Place::Free => PAGE + PAGE / 2,
            Place::Start => PAGE,
            Place::End => PAGE + accessible - size,
        };
        for guard in [0, PAGE + accessible] {
            // SAFETY: the page must belong to this map, and no reference to it may exist. It is a part of
            // the map that was just made, and the slice lies between the two guard pages.
            let answer = unsafe {
                libc::mprotect(map.as_mut_ptr().add(guard).cast(), PAGE, libc::PROT_NONE)
            };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        }
        // SAFETY: the destination must have space for the elements and must be aligned. The accessible part
        // has space for `size` bytes from `offset` on, and `offset` is a multiple of the alignment, because a
        // page and `size` are.
        unsafe {
            let to = map.as_mut_ptr().add(offset).cast();
            elements.as_ptr().copy_to_nonoverlapping(to, elements.len());
        }
        Self { map, offset, length: elements.len(), elements: PhantomData }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the elements must be initialised, aligned, and not mutably borrowed. `new` wrote them,
        // aligned; the slice borrows `self`, which owns the map.
        unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(self.offset).cast(), self.length)
        }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`; the slice borrows `self` mutably.
        unsafe {
            let start = self.map.as_mut_ptr().add(self.offset).cast();
            std::slice::from_raw_parts_mut(start, self.length)
        }
    }
}

mod tests {
    use std::os::fd::AsRawFd;

    use half::bf16;

    use super::super::super::arch::InstructionSet;
    use super::super::super::arch::Isa;
    use super::super::super::attention::{BLOCK_TOKENS, BlockLayout, Visible, attend};
    use super::super::super::attention_kernel::{AttentionKernel, CacheElement, CacheVisitor};
    use super::super::super::column_blocks::Columns;
    use super::super::super::element::Element;
    use super::super::super::formats;
    use super::super::super::gemm::{self, Epilogue, PackedWeights};
    use super::super::super::micro_kernel::{KernelVisitor, MicroKernel};
    use super::super::super::norm::{Norm, rotate};
    use super::super::super::packed_matrix::PackedMatrix;
    use super::super::super::stored::StoredMatrix;
    use super::super::super::tile::{Mr, NR, Prefetch, TileRows};
    use super::super::matrix::RandomMatrix;
    use super::super::oracle;
    use super::*;

    #[test]
    fn guarded_slices_have_no_readable_neighbours() {
        for length in [0, 1, 3, 32_768, 40_000] {
            let numbers = |place| Guarded::new(place, &vec![1u16; length]);
            for place in [Place::Free, Place::Start, Place::End] {
                assert_eq!(*numbers(place), vec![1; length]);
            }
            let (start, end) = (numbers(Place::Start), numbers(Place::End));
            assert!(can_be_read(start.as_ptr().cast()));
            assert!(!can_be_read(start.as_ptr().wrapping_sub(1).cast()));
            assert!(can_be_read(end.as_ptr_range().end.wrapping_sub(1).cast()));
            assert!(!can_be_read(end.as_ptr_range().end.cast()));
        }
    }

    fn can_be_read(byte: *const u8) -> bool {
        let (_reader, writer) = std::io::pipe().expect("a pipe");
        // SAFETY: the system reads the byte, and returns an error if the byte is not readable.
        unsafe { libc::write(writer.as_raw_fd(), byte.cast(), 1) == 1 }
    }

    /// Runs a kernel on every set with its slices at each place, and asserts that the results are the same.
    fn check(run: impl Fn(InstructionSet, Place) -> Vec<f32>) {
        for set in InstructionSet::available() {
            let free = run(set, Place::Free);
            assert!(free.iter().all(|number| number.is_finite()), "{}", set.name());
            for place in [Place::Start, Place::End] {
                assert!(run(set, place) == free, "{} {place:?}", set.name());
            }
        }
    }

    fn numbers(place: Place, count: usize, seed: u64) -> Guarded<f32> {
        Guarded::new(place, &oracle::numbers(count, seed).collect::<Vec<f32>>())
    }

    /// Covers every kernel, every height that it has, and up to nine panels.
    #[test]
    fn multiply_stays_inside_its_slices() {
        #[derive(Clone, Copy)]
        struct Multiply(Place, usize, usize);

        impl KernelVisitor for Multiply {
            type Output = Vec<f32>;

            fn visit<K: MicroKernel>(self, kernel: K) -> Vec<f32> {
                multiply(kernel, self.0, self.1, self.2)
            }
        }

        for length in [1, 2, 17, 32, 95] {
            for panels in 1..=9 {
                check(|set, place| {
                    formats::with_every_kernel(set, Multiply(place, length, panels)).concat()
                });
            }
        }
    }

    /// Returns the sums of tiles of every height, of rows of `length` numbers with several panels.
    fn multiply<K: MicroKernel>(
        kernel: K,
        place: Place,
        length: usize,
        panel_count: usize,
    ) -> Vec<f32> {
        let length = RandomMatrix::new::<K>(1, length, 0).inputs;
        let blocks = length.div_ceil(K::BLOCK_K);
        let panels: Vec<Guarded<K::Block>> = (0..panel_count)
            .map(|panel| {
                let weights = RandomMatrix::new::<K>(NR, length, panel as u64);
                let guarded = Guarded::new(place, weights.bytes());
                let rows = weights.rows_in(&guarded);
                let zeros: Vec<K::Block> = bytemuck::zeroed_vec(blocks);
                let mut packed = Guarded::new(place, &zeros);
                kernel.isa().run(
                    #[inline(always)]
                    || K::pack_rows(&rows, &mut packed),
                );
                packed
            })
            .collect();
        let panels: Vec<&[K::Block]> = panels.iter().map(|panel| &**panel).collect();
        let mut all = Vec::new();
        let highest = kernel.max_mr().rows();
        for mr in K::Rows::ALL.iter().filter(|mr| mr.rows() <= highest) {
            let height = mr.rows();
            // The fewest rows that are multiplied in a tile of this height.
            let rows = numbers(place, (height / 2 + 1) * length, 11);
            let lhs: Vec<K::Lhs> = bytemuck::zeroed_vec(blocks * height);
            let mut lhs = Guarded::new(place, &lhs);
            kernel.isa().run(
                #[inline(always)]
                || K::pack_lhs(&rows, length, height, &mut lhs),
            );
            let mut sums = Guarded::new(place, &vec![[0.5; NR]; panel_count * height]);
            let prefetch = Prefetch { distance: 4096, stride: 64 };
            kernel.multiply(&lhs, &panels, *mr, &mut sums, prefetch);
            all.extend_from_slice(sums.as_flattened());
        }
        all
    }

    #[test]
    fn weigh_values_stays_inside_its_slices() {
        #[derive(Clone, Copy)]
        struct Weigh(Place, usize, usize);

        impl<E: CacheElement> CacheVisitor<E> for Weigh {
            type Output = Vec<f32>;

            fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) -> Vec<f32> {
                weigh_values(kernel, self.0, self.1, self.2)
            }
        }

        for panels in [1, 2, 8] {
            for visible in [1, 2, 15, 16] {
                check(|set, place| {
                    let visitor = Weigh(place, visible, panels);
                    let mut sums = f32::with_every_kernel(set, visitor);
                    sums.extend(bf16::with_every_kernel(set, visitor));
                    sums.extend(i8::with_every_kernel(set, visitor));
                    sums.concat()
                });
            }
        }
    }

    fn weigh_values<K: AttentionKernel>(
        kernel: K,
        place: Place,
        visible: usize,
        panels: usize,
    ) -> Vec<f32> {
        let values = oracle::numbers(panels * NR * NR, 4).map(|n| K::Element::round(50.0 * n));
        let mut values: Vec<K::Element> = values.collect();
        values.resize(values.len() + K::Element::SCALES, K::Element::round(0.0));
        let scales = values.len() - K::Element::SCALES;
        (0..NR).for_each(|slot| K::Element::write_scale(&mut values[scales..], slot, 0.25));
        let values = Guarded::new(place, &values);
        let mut all = Vec::new();
        for mr in Mr::ALL.iter().filter(|mr| mr.rows() <= K::Isa::MAX_MR.rows()) {
            let mut weights = vec![[0.0; NR]; mr.rows()];
            weights.iter_mut().for_each(|weights| weights[..visible].fill(0.75));
            let weights = Guarded::new(place, &weights);
            let mut sums = Guarded::new(place, &vec![[0.5; NR]; panels * mr.rows()]);
            kernel.weigh_values(&weights, &[&values[..]], *mr, &[visible], &[], &mut sums);
            all.extend_from_slice(sums.as_flattened());
        }
        all
    }

    #[test]
    fn norm_and_rotate_stay_inside_their_slices() {
        for length in [2, 30, 64, 1000] {
            check(|set, place| {
                let x = numbers(place, length, 1);
                let norm = Norm { weight: oracle::numbers(length, 2).collect(), epsilon: 1e-6 };
                let mut out = numbers(place, length, 3);
                let (cos, sin) = (numbers(place, length / 2, 4), numbers(place, length / 2, 5));
                set.run(
                    #[inline(always)]
                    || {
                        norm.apply(&x, &mut out);
                        rotate(&mut out, &cos, &sin);
                    },
                );
                out.to_vec()
            });
        }
    }

    #[test]
    fn projections_stay_inside_their_slices() {
        #[derive(Clone, Copy)]
        struct Project(Place, (usize, usize, usize));

        impl KernelVisitor for Project {
            type Output = Vec<f32>;

            fn visit<K: MicroKernel>(self, kernel: K) -> Vec<f32> {
                let Self(place, (rows, inputs, outputs)) = self;
                let stored = [7, 8].map(|seed| RandomMatrix::new::<K>(outputs, inputs, seed));
                let inputs = stored[0].inputs;
                let x = numbers(place, rows * inputs, 5);
                let norm = Norm { weight: oracle::numbers(inputs, 6).collect(), epsilon: 1e-6 };
                let [first, second] = stored.map(|stored| {
                    let bytes = Guarded::new(place, stored.bytes());
                    let matrix = StoredMatrix::new(stored.rows_in(&bytes), inputs);
                    PackedMatrix::pack(kernel, &matrix).expect("memory").guarded(place)
                });
                let mut y = Guarded::new(place, &vec![f32::NAN; rows * outputs]);
                first.project(&x, None, Columns::all(&mut y, outputs));
                let mut all = y.to_vec();
                y.fill(f32::NAN);
                let matrices = [&first, &second];
                let columns = Columns::all(&mut y, outputs);
                gemm::multiply(&x, Some(&norm), &matrices, columns, Epilogue::SwiGlu);
                all.extend_from_slice(&y);
                for output in 0..outputs {
                    let mut row = Guarded::new(place, &vec![f32::NAN; inputs]);
                    first.unpack_row(output, &mut row);
                    all.extend_from_slice(&row);
                }
                all
            }
        }

        for shape in [
            (1, 1, 1),
            (1, 64, 17),
            (2, 5, 16),
            (3, 33, 31),
            (9, 100, 48),
            (17, 3, 65),
            (75, 600, 33),
        ] {
            check(|set, place| formats::with_every_kernel(set, Project(place, shape)).concat());
        }
    }

    #[test]
    fn attention_stays_inside_its_slices() {
        #[derive(Clone, Copy)]
        struct Attend(Place, usize, usize, usize);

        impl<E: CacheElement> CacheVisitor<E> for Attend {
            type Output = Vec<f32>;

            fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) -> Vec<f32> {
                attention(kernel, self.0, self.1, self.2, self.3)
            }
        }

        for (head_dim, heads) in [(2, 1), (16, 3), (30, 2), (80, 5), (128, 2)] {
            for tokens in [1, 15, 16, 17, 64, 95] {
                check(|set, place| {
                    let visitor = Attend(place, head_dim, heads, tokens);
                    let mut out = f32::with_every_kernel(set, visitor);
                    out.extend(bf16::with_every_kernel(set, visitor));
                    out.extend(i8::with_every_kernel(set, visitor));
                    out.concat()
                });
            }
        }
    }

    /// Returns the attention of the last two tokens of a sequence, in a cache of no more blocks than needed.
    fn attention<K: AttentionKernel>(
        kernel: K,
        place: Place,
        head_dim: usize,
        heads: usize,
        tokens: usize,
    ) -> Vec<f32> {
        let layout = BlockLayout { kv_heads: 2, head_dim };
        // The blocks are in reverse, so that the sequence starts at the end of the cache.
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
        let blocks = Guarded::new(place, &blocks);
        let size = layout.block_size::<K::Element>();
        let cache = vec![K::Element::round(f32::NAN); blocks.len() * size];
        let mut cache = Guarded::new(place, &cache);
        let mut all = Vec::new();
        for token in 0..tokens {
            let block = &mut cache[blocks[token / BLOCK_TOKENS] as usize * size..][..size];
            for kv_head in 0..layout.kv_heads {
                let [key, value] = [1, 2].map(|seed| numbers(place, head_dim, token as u64 + seed));
                kernel.isa().run(
                    #[inline(always)]
                    || layout.write(block, token % BLOCK_TOKENS, kv_head, (&key, &value)),
                );
            }
        }
        for kv_heads in [0..1, 1..2, 0..2] {
            let visible = |position| Visible { blocks: &blocks, position };
            let tokens: Vec<_> = (tokens.saturating_sub(2)..tokens).map(visible).collect();
            let queries = numbers(place, kv_heads.len() * tokens.len() * heads * head_dim, 3);
            let mut out = Guarded::new(place, &vec![f32::NAN; queries.len()]);
            attend(kernel, layout, &cache, &tokens, kv_heads, &queries, &mut out);
            all.extend_from_slice(&out);
        }
        all
    }
}
