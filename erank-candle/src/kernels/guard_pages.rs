//! Every kernel on slices that end, or begin, at a page that may be neither read nor written: one
//! that reaches past them ends the process with SIGSEGV. That fetching ahead may go there is seen too.
#![expect(
    unsafe_code,
    reason = "pages are taken from the process, and slices made of what is left"
)]

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapRaw};

/// Where a slice lies between two pages without access.
#[derive(Debug, Clone, Copy)]
pub(super) enum Place {
    /// Away from both.
    Free,
    /// Its first element is the first behind such a page.
    Start,
    /// Its last element is the last before one.
    End,
}

/// A slice between two pages without access.
#[derive(Debug)]
pub(super) struct Guarded<T> {
    map: MmapRaw,
    /// Of the first element, in bytes.
    offset: usize,
    length: usize,
    elements: PhantomData<T>,
}

/// The largest page of the systems that this may run on.
const PAGE: usize = 1 << 16;

impl<T: Copy> Guarded<T> {
    pub(super) fn new(place: Place, elements: &[T]) -> Self {
        assert!(align_of::<T>() <= PAGE);
        let size = size_of_val(elements);
        let room = (size + PAGE).next_multiple_of(PAGE);
        let map = MmapRaw::from(MmapMut::map_anon(PAGE + room + PAGE).expect("memory"));
        let offset = match place {
            Place::Free => PAGE + PAGE / 2,
            Place::Start => PAGE,
            Place::End => PAGE + room - size,
        };
        for guard in [0, PAGE + room] {
            // SAFETY: what lies there must be ours, and nobody may have use for it. It is a part of the
            // map, and the slice lies between the two.
            let answer = unsafe {
                libc::mprotect(map.as_mut_ptr().add(guard).cast(), PAGE, libc::PROT_NONE)
            };
            assert_eq!(answer, 0, "{}", std::io::Error::last_os_error());
        }
        // SAFETY: as many elements as are read are written to the map's accessible part. `offset` is a
        // multiple of the elements' size or of a page, so of their alignment.
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
        // SAFETY: `new` wrote these elements there, aligned; the map lives as long as the slice, and
        // who has it mutably has this.
        unsafe {
            std::slice::from_raw_parts(self.map.as_ptr().add(self.offset).cast(), self.length)
        }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`.
        unsafe {
            let start = self.map.as_mut_ptr().add(self.offset).cast();
            std::slice::from_raw_parts_mut(start, self.length)
        }
    }
}

mod tests {
    use std::os::fd::AsRawFd;

    use half::bf16;

    use super::super::attention::{BLOCK_TOKENS, BlockLayout, Visible, attend};
    use super::super::linear::{multiply, multiply_both};
    use super::super::norm::{Norm, rotate};
    use super::super::products::{Pairs, Products, Singles, Tiles};
    use super::super::{
        Ahead, Element, InstructionSet, LANES, PackedMatrix, PackedWeights, reference,
    };
    use super::*;

    #[test]
    fn what_lies_beside_a_slice_cannot_be_read() {
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
        // SAFETY: it is the system that reads the byte, and it answers with an error if it may not.
        unsafe { libc::write(writer.as_raw_fd(), byte.cast(), 1) == 1 }
    }

    /// Runs a kernel on every set with its slices at each place: the results must be the same.
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
        Guarded::new(place, &reference::numbers(count, seed).collect::<Vec<f32>>())
    }

    #[test]
    fn products_of_every_height_and_number_of_panels() {
        for length in [1, 2, 17, 32, 95] {
            for panels in 1..=9 {
                check(|set, place| {
                    let mut sums = products::<Singles<f32>>(set, place, length, panels);
                    sums.extend(products::<Singles<bf16>>(set, place, length, panels));
                    if set.multiplies_pairs() {
                        sums.extend(products::<Pairs>(set, place, length, panels));
                    }
                    if set.multiplies_tiles() {
                        sums.extend(products::<Tiles>(set, place, length, panels));
                    }
                    sums
                });
            }
        }
    }

    /// The sums of rows of so many numbers with so many panels, in tiles of every height.
    fn products<P: Products>(
        set: InstructionSet,
        place: Place,
        length: usize,
        panel_count: usize,
    ) -> Vec<f32> {
        let padded = length.next_multiple_of(P::BLOCK);
        let panels: Vec<Guarded<P::Right>> = (0..panel_count)
            .map(|panel| {
                let numbers = reference::numbers(padded * LANES, panel as u64);
                Guarded::new(place, &numbers.map(P::Right::round).collect::<Vec<_>>())
            })
            .collect();
        let panels: Vec<&[P::Right]> = panels.iter().map(|panel| &**panel).collect();
        let mut all = Vec::new();
        let mut height = 1;
        while height <= P::tallest(set) {
            // As few rows as are multiplied in a tile of this height.
            let rows = numbers(place, (height / 2 + 1) * length, 11);
            let left = vec![P::Left::default(); padded / P::DEPTH * height];
            let mut left = Guarded::new(place, &left);
            set.run(
                #[inline(always)]
                || P::interleave(&rows, length, height, &mut left),
            );
            let mut sums = Guarded::new(place, &vec![[0.5; LANES]; panel_count * height]);
            P::multiply(set, &left, &panels, height, &mut sums, Ahead { bytes: 4096, step: 64 });
            all.extend_from_slice(sums.as_flattened());
            height *= 2;
        }
        all
    }

    #[test]
    fn weights_of_every_height_times_values() {
        for panels in [1, 2, 8] {
            for seen in [1, 2, 15, 16] {
                check(|set, place| {
                    let mut sums = weighed::<Singles<f32>>(set, place, seen, panels);
                    sums.extend(weighed::<Singles<bf16>>(set, place, seen, panels));
                    if set.multiplies_pairs() {
                        sums.extend(weighed::<Pairs>(set, place, seen, panels));
                    }
                    sums
                });
            }
        }
    }

    fn weighed<P: Products>(
        set: InstructionSet,
        place: Place,
        seen: usize,
        panels: usize,
    ) -> Vec<f32> {
        let values = reference::numbers(panels * LANES * LANES, 4).map(P::Right::round);
        let values = Guarded::new(place, &values.collect::<Vec<_>>());
        let mut all = Vec::new();
        for height in [1, 2, 4, 8] {
            if height <= set.tallest_tile() {
                let mut weights = vec![[0.0; LANES]; height];
                weights.iter_mut().for_each(|weights| weights[..seen].fill(0.75));
                let weights = Guarded::new(place, &weights);
                let mut sums = Guarded::new(place, &vec![[0.5; LANES]; panels * height]);
                P::weigh(set, &weights, &values, seen, &mut sums);
                all.extend_from_slice(sums.as_flattened());
            }
        }
        all
    }

    #[test]
    fn norm_and_rotation() {
        for length in [2, 30, 64, 1000] {
            check(|set, place| {
                let x = numbers(place, length, 1);
                let norm = Norm { weight: reference::numbers(length, 2).collect(), epsilon: 1e-6 };
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
    fn projections() {
        for (rows, inputs, outputs) in [
            (1, 1, 1),
            (1, 64, 17),
            (2, 5, 16),
            (3, 33, 31),
            (9, 100, 48),
            (17, 3, 65),
            (75, 600, 33),
        ] {
            check(|set, place| {
                let x = numbers(place, rows * inputs, 5);
                let norm = Norm { weight: reference::numbers(inputs, 6).collect(), epsilon: 1e-6 };
                let mut all = Vec::new();
                let firsts = packings(set, place, outputs, inputs, 7);
                let seconds = packings(set, place, outputs, inputs, 8);
                for (first, second) in firsts.iter().zip(&seconds) {
                    let mut y = Guarded::new(place, &vec![f32::NAN; rows * outputs]);
                    multiply(set, &x, None, first, &mut y, |y, product| *y = product);
                    all.extend_from_slice(&y);
                    y.fill(f32::NAN);
                    multiply_both(set, &x, Some(&norm), [first, second], &mut y, |y, [a, b]| {
                        *y = a * b;
                    });
                    all.extend_from_slice(&y);
                }
                all
            });
        }
    }

    /// The ways that a random matrix can be packed for a set.
    fn packings(
        set: InstructionSet,
        place: Place,
        outputs: usize,
        inputs: usize,
        seed: u64,
    ) -> Vec<PackedWeights> {
        let numbers: Vec<f32> = reference::numbers(outputs * inputs, seed).collect();
        let element = |output: usize, input: usize| numbers[output * inputs + input];
        let rounded = |output, input| bf16::round(element(output, input));
        fn packed<P: Products>(
            place: Place,
            (outputs, inputs): (usize, usize),
            element: impl Fn(usize, usize) -> P::Right + Sync,
        ) -> PackedMatrix<P> {
            PackedMatrix::pack(outputs, inputs, element).expect("room").guarded(place)
        }
        let size = (outputs, inputs);
        let mut packings = vec![
            PackedWeights::F32(packed(place, size, element)),
            PackedWeights::Bf16(packed(place, size, rounded)),
        ];
        if set.multiplies_pairs() {
            packings.push(PackedWeights::Bf16Pairs(packed(place, size, rounded)));
        }
        if set.multiplies_tiles() {
            packings.push(PackedWeights::Bf16Tiles(packed(place, size, rounded)));
        }
        packings
    }

    #[test]
    fn attention() {
        for (head_dim, heads) in [(2, 1), (16, 3), (30, 2), (80, 5), (128, 2)] {
            for tokens in [1, 15, 16, 17, 64, 95] {
                check(|set, place| {
                    let mut out = attention_of::<Singles<f32>>(set, place, head_dim, heads, tokens);
                    out.extend(attention_of::<Singles<bf16>>(set, place, head_dim, heads, tokens));
                    if set.multiplies_pairs() {
                        out.extend(attention_of::<Pairs>(set, place, head_dim, heads, tokens));
                    }
                    out
                });
            }
        }
    }

    /// The last two tokens of a sequence attend, in a cache without a block too many.
    fn attention_of<P: Products>(
        set: InstructionSet,
        place: Place,
        head_dim: usize,
        heads: usize,
        tokens: usize,
    ) -> Vec<f32> {
        let layout = BlockLayout { kv_heads: 2, head_dim };
        // In reverse, so that the sequence begins at the end of the cache.
        let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).rev().collect();
        let blocks = Guarded::new(place, &blocks);
        let cache = vec![P::Right::round(f32::NAN); blocks.len() * layout.block_size()];
        let mut cache = Guarded::new(place, &cache);
        let mut all = Vec::new();
        let size = layout.block_size();
        for token in 0..tokens {
            let block = &mut cache[blocks[token / BLOCK_TOKENS] as usize * size..][..size];
            for kv_head in 0..layout.kv_heads {
                let [key, value] = [1, 2].map(|seed| numbers(place, head_dim, token as u64 + seed));
                set.run(
                    #[inline(always)]
                    || layout.write::<P>(block, token % BLOCK_TOKENS, kv_head, (&key, &value)),
                );
            }
        }
        for kv_heads in [0..1, 1..2, 0..2] {
            let visible = |position| Visible { blocks: &blocks, position };
            let seeing: Vec<_> = (tokens.saturating_sub(2)..tokens).map(visible).collect();
            let queries = numbers(place, kv_heads.len() * seeing.len() * heads * head_dim, 3);
            let mut out = Guarded::new(place, &vec![f32::NAN; queries.len()]);
            attend::<P>(set, layout, &cache, &seeing, kv_heads, &queries, &mut out);
            all.extend_from_slice(&out);
        }
        all
    }
}
