use half::bf16;

use super::super::arch::InstructionSet;
use super::super::formats;
use super::super::micro_kernel::KernelVisitor;
use super::super::stored::{StoredMatrix, StoredRow};
use super::super::tests::oracle;
use super::*;

/// Returns random numbers as a file stores them in F32.
fn stored(count: usize, seed: u64) -> Vec<[u8; 4]> {
    oracle::numbers(count, seed).map(f32::to_le_bytes).collect()
}

/// Calls the visitor of each set with every micro-kernel of that set.
fn every_kernel<V: KernelVisitor<Output = ()> + Copy>(visitor: impl Fn(InstructionSet) -> V) {
    for set in InstructionSet::available() {
        formats::with_every_kernel(set, visitor(set));
    }
}

#[test]
fn unpack_row_returns_the_packed_rows_for_any_shape() {
    #[derive(Clone, Copy)]
    struct Check(InstructionSet);

    impl KernelVisitor for Check {
        type Output = ();

        fn visit<K: MicroKernel>(self, kernel: K) {
            for (outputs, inputs) in [(1, 1), (15, 3), (16, 2), (17, 5), (40, 7), (33, 70)] {
                // These numbers are exact in BF16 and F16.
                let numbers: Vec<f32> =
                    (0..outputs * inputs).map(|i| (i % 251) as f32 - 125.0).collect();
                let f32s: Vec<[u8; 4]> = numbers.iter().map(|x| x.to_le_bytes()).collect();
                let bf16s: Vec<[u8; 2]> =
                    numbers.iter().map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
                let f16s: Vec<[u8; 2]> =
                    numbers.iter().map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
                let rows = [StoredRow::F32(&f32s), StoredRow::F16(&f16s), StoredRow::Bf16(&bf16s)];
                for stored in rows {
                    let matrix = StoredMatrix::new([stored], inputs);
                    let packed = PackedMatrix::pack(kernel, &matrix).expect("memory");
                    for (output, expected) in numbers.chunks_exact(inputs).enumerate() {
                        let mut row = vec![f32::NAN; inputs];
                        packed.unpack_row(output, &mut row);
                        assert_eq!(row, K::round_weights(expected), "{} {kernel:?}", self.0.name());
                    }
                }
            }
        }
    }

    every_kernel(Check);
}

#[test]
fn multiply_agrees_with_the_oracle_for_odd_shapes() {
    #[derive(Clone, Copy)]
    struct Check(InstructionSet);

    impl KernelVisitor for Check {
        type Output = ();

        fn visit<K: MicroKernel>(self, kernel: K) {
            for (rows, inputs, outputs) in [
                (1, 1, 1),
                (1, 64, 17),
                (2, 5, 16),
                (3, 33, 31),
                (7, 16, 50),
                (9, 100, 48),
                (17, 3, 1),
                (40, 70, 33),
                (75, 600, 33),
            ] {
                let [first, second] = [21, 22].map(|seed| {
                    let numbers = stored(outputs * inputs, seed);
                    let matrix = StoredMatrix::new([StoredRow::F32(&numbers)], inputs);
                    PackedMatrix::pack(kernel, &matrix).expect("memory")
                });
                check(self.0, rows, &first, &second);
            }
        }
    }

    every_kernel(Check);
}

fn check<K: MicroKernel>(
    set: InstructionSet,
    rows: usize,
    first: &PackedMatrix<K>,
    second: &PackedMatrix<K>,
) {
    let (inputs, outputs) = (first.inputs(), first.outputs());
    let x: Vec<f32> = oracle::numbers(rows * inputs, 5).collect();
    let mut y = vec![f32::NAN; rows * outputs];
    first.project(&x, None, Columns::all(&mut y, outputs));
    let mut both = vec![[f32::NAN; 2]; rows * outputs];
    // The two products, one after the other, as an epilogue gets them together.
    for n in 0..2 {
        let mut y = vec![f32::NAN; rows * outputs];
        multiply(&x, None, [first, second], Columns::all(&mut y, outputs), |y, products| {
            *y = products[n]
        });
        both.iter_mut().zip(y).for_each(|(both, y)| both[n] = y);
    }
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        let x = K::round_activations(x);
        for output in 0..outputs {
            let [a, b] = both[row * outputs + output];
            assert_eq!(a, y[row * outputs + output]);
            for (product, weights) in [(a, first), (b, second)] {
                let mut matrix_row = vec![0.0; inputs];
                weights.unpack_row(output, &mut matrix_row);
                let exact = oracle::dot(0.0, x.iter().copied().zip(matrix_row));
                exact.assert_close(product, inputs + 1, set.name());
            }
        }
    }
}

#[test]
fn project_gives_a_row_the_same_bits_in_any_batch() {
    #[derive(Clone, Copy)]
    struct Check(InstructionSet);

    impl KernelVisitor for Check {
        type Output = ();

        fn visit<K: MicroKernel>(self, kernel: K) {
            let numbers = stored(40 * 71, 23);
            let matrix = StoredMatrix::new([StoredRow::F32(&numbers)], 71);
            let weights = PackedMatrix::pack(kernel, &matrix).expect("memory");
            let x: Vec<f32> = oracle::numbers(11 * 71, 6).collect();
            let product = |x: &[f32]| {
                let mut y = vec![0.0; x.len() / 71 * 40];
                weights.project(x, None, Columns::all(&mut y, 40));
                y
            };
            let all = product(&x);
            for (row, x) in x.chunks_exact(71).enumerate() {
                let alone = product(x);
                assert_eq!(alone, all[row * 40..(row + 1) * 40], "{} row {row}", self.0.name());
            }
        }
    }

    every_kernel(Check);
}
