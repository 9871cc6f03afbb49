use half::bf16;

use super::super::arch::InstructionSet;
use super::super::attention_kernel::{CacheElement, CacheVisitor};
use super::super::tests::oracle;
use super::*;

#[test]
fn attend_agrees_with_the_oracle_for_odd_shapes() {
    #[derive(Clone, Copy)]
    struct Check(InstructionSet);

    impl<E: CacheElement> CacheVisitor<E> for Check {
        type Output = ();

        fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) {
            for (head_dim, group) in [(2, 1), (16, 3), (30, 2), (64, 4), (80, 5), (128, 9)] {
                for tokens in [1, 2, 15, 16, 17, 40, 64, 65, 95] {
                    check(self.0, kernel, head_dim, group, tokens);
                }
            }
        }
    }

    for set in InstructionSet::available() {
        f32::with_every_kernel(set, Check(set));
        bf16::with_every_kernel(set, Check(set));
        i8::with_every_kernel(set, Check(set));
    }
}

/// Returns the numbers as a cache of type `E` holds them.
fn stored<E: CacheElement>(numbers: &[f32]) -> Vec<f64> {
    let scale = E::scale(numbers);
    let number = |number| f64::from(E::round(number / scale).widen()) * f64::from(scale);
    numbers.iter().map(|n| number(*n)).collect()
}

fn check<K: AttentionKernel>(
    set: InstructionSet,
    kernel: K,
    head_dim: usize,
    group: usize,
    tokens: usize,
) {
    let layout = BlockLayout { kv_heads: 2, head_dim };
    let kv_head = 1;
    // The blocks are in reverse order, between numbers of other sequences and heads.
    let blocks: Vec<u32> = (0..tokens.div_ceil(BLOCK_TOKENS) as u32).map(|b| 5 - b).collect();
    let mut cache = vec![K::Element::round(f32::NAN); 6 * layout.block_size::<K::Element>()];
    let rows = |seed| -> Vec<Vec<f32>> {
        let numbers: Vec<f32> = oracle::numbers(tokens * head_dim, seed).collect();
        numbers.chunks(head_dim).map(<[f32]>::to_vec).collect()
    };
    let (keys, values) = (rows(7), rows(8));
    for token in 0..tokens {
        let size = layout.block_size::<K::Element>();
        let block = &mut cache[blocks[token / BLOCK_TOKENS] as usize * size..][..size];
        let pair: (&[f32], &[f32]) = (&keys[token], &values[token]);
        layout.write(block, token % BLOCK_TOKENS, kv_head, pair);
    }
    let queries: Vec<f32> = oracle::numbers(group * head_dim, 9).map(|q| q * 4.0).collect();
    let mut out = vec![0.0; group * head_dim];
    let visible = Visible { blocks: &blocks, position: tokens - 1 };
    attend(kernel, layout, &cache, &[visible], kv_head..kv_head + 1, &queries, &mut out);

    let widen = |x: &f32| f64::from(K::Element::round_activation(*x));
    let keys: Vec<Vec<f64>> = keys.iter().map(|key| stored::<K::Element>(key)).collect();
    let values: Vec<Vec<f64>> = values.iter().map(|value| stored::<K::Element>(value)).collect();
    for (query, out) in queries.chunks(head_dim).zip(out.chunks(head_dim)) {
        let score = |key: &Vec<f64>| {
            let dot: f64 = query.iter().zip(key).map(|(q, k)| widen(q) * k).sum();
            dot / (head_dim as f64).sqrt()
        };
        let weights: Vec<f64> = keys.iter().map(|key| score(key).exp()).collect();
        let total: f64 = weights.iter().sum();
        for (i, out) in out.iter().enumerate() {
            let sum = |f: &dyn Fn(f64) -> f64| -> f64 {
                weights.iter().zip(&values).map(|(w, v)| w * f(v[i])).sum()
            };
            let exact = sum(&|v| v) / total;
            // The error of a score is the relative error of its weight: head_dim roundings of
            // terms up to 4, and those of the sums. Each block rescales with one rounding.
            let u = K::Isa::UNITS_OF_ROUNDING as f64 * f64::from(f32::EPSILON) / 2.0;
            let score_error = 4.0 * head_dim as f64 * (head_dim as f64).sqrt() * u;
            // A weight is rounded to the cache's type, in the numerator and in the denominator.
            let rounding = if size_of::<K::Element>() == 2 { 1.01 / 512.0 } else { 0.0 };
            let bound = (2.0 * (score_error + rounding) + (tokens + 16) as f64 * u)
                * sum(&f64::abs)
                / total;
            let error = (f64::from(*out) - exact).abs();
            assert!(error <= bound, "{} {head_dim}×{tokens}: {error:e} > {bound:e}", set.name());
        }
    }
}

/// The tokens are of several sequences, some with common blocks, some in the same block or span.
#[test]
fn attend_gives_a_token_the_same_bits_in_any_batch() {
    #[derive(Clone, Copy)]
    struct Check<'a>(InstructionSet, &'a [Visible<'a>]);

    impl<E: CacheElement> CacheVisitor<E> for Check<'_> {
        type Output = ();

        fn visit<K: AttentionKernel<Element = E>>(self, kernel: K) {
            // AMX attends in tiles if 32 divides the size of a head.
            for head_dim in [20, 64] {
                check_batch(self.0, kernel, head_dim, self.1);
            }
        }
    }

    let sequences: [&[u32]; 6] = [
        &[4, 2, 0, 9, 11, 12],
        &[4, 2, 1, 3, 10],
        &[4, 2, 1, 3, 10, 6],
        &[4, 2, 1, 3, 10, 5],
        &[4],
        &[7, 8],
    ];
    let tokens: Vec<Visible<'_>> = [
        (0, 0..32),
        (0, 40..96),
        (1, 33..34),
        (1, 60..80),
        (2, 47..50),
        (2, 63..96),
        (3, 79..80),
        (3, 95..96),
        (4, 0..4),
        (4, 15..16),
        (5, 30..31),
    ]
    .into_iter()
    .flat_map(|(sequence, positions)| {
        positions.map(move |position| Visible { blocks: sequences[sequence], position })
    })
    .collect();
    for set in InstructionSet::available() {
        f32::with_every_kernel(set, Check(set, &tokens));
        bf16::with_every_kernel(set, Check(set, &tokens));
        i8::with_every_kernel(set, Check(set, &tokens));
    }
}

fn check_batch<K: AttentionKernel>(
    set: InstructionSet,
    kernel: K,
    head_dim: usize,
    tokens: &[Visible<'_>],
) {
    let heads = 3;
    let layout = BlockLayout { kv_heads: 2, head_dim };
    let mut cache = vec![K::Element::round(0.0); 13 * layout.block_size::<K::Element>()];
    let mut numbers = oracle::numbers(13 * BLOCK_TOKENS * 2 * 2 * head_dim, 3);
    for block in cache.chunks_exact_mut(layout.block_size::<K::Element>()) {
        for (slot, kv_head) in (0..BLOCK_TOKENS).flat_map(|slot| [(slot, 0), (slot, 1)]) {
            let key: Vec<f32> = numbers.by_ref().take(head_dim).collect();
            let value: Vec<f32> = numbers.by_ref().take(head_dim).collect();
            layout.write(block, slot, kv_head, (&key, &value));
        }
    }
    let width = heads * head_dim;
    let queries: Vec<f32> = oracle::numbers(tokens.len() * width, 4).collect();
    let run = |tokens: &[Visible<'_>], queries: &[f32]| {
        let mut out = vec![7.0; queries.len()];
        attend(kernel, layout, &cache, tokens, 1..2, queries, &mut out);
        out
    };
    let together = run(tokens, &queries);
    for (index, token) in tokens.iter().enumerate() {
        let range = index * width..(index + 1) * width;
        let alone = run(&[*token], &queries[range.clone()]);
        assert_eq!(alone, together[range], "{} {head_dim} token {index}", set.name());
    }
}
