use super::super::super::column_blocks::Columns;
use super::super::super::gemm::PackedWeights;
use super::super::super::packed_matrix::PackedMatrix;
use super::super::super::stored::StoredMatrix;
use super::super::super::tests::matrix::RandomMatrix;
use super::super::super::tests::oracle;
use super::super::q4_0::Q4_0;
use super::super::q4_k::Q4K;
use super::super::q5_k::Q5K;
use super::super::q6_k::Q6K;
use super::super::q8_0::Q8_0;
use super::*;

#[derive(Clone, Copy)]
struct Pack<'a>(&'a StoredMatrix<'a>);

impl KernelVisitor for Pack<'_> {
    type Output = Box<dyn PackedWeights>;

    fn visit<K: MicroKernel>(self, kernel: K) -> Self::Output {
        Box::new(PackedMatrix::pack(kernel, self.0).expect("memory"))
    }
}

/// Packs a matrix for every micro-kernel of every set that multiplies integers.
fn packed<F: GroupFormat>(matrix: &StoredMatrix<'_>) -> Vec<Box<dyn PackedWeights>> {
    let sets = InstructionSet::available().into_iter();
    sets.flat_map(|set| with_exact_kernels::<F, _>(set, Pack(matrix))).collect()
}

#[test]
fn every_set_gives_the_same_bits_if_it_multiplies_integers() {
    fn check<F: GroupFormat>() {
        for (rows, inputs, outputs) in [(1, 32, 16), (3, 70, 33), (9, 1100, 40), (40, 600, 17)] {
            let matrix = RandomMatrix::of_blocks(F::BLOCK_TYPE, outputs, inputs, 32);
            let x: Vec<f32> = oracle::numbers(rows * matrix.inputs, 33).collect();
            let mut products = Vec::new();
            for weights in packed::<F>(&matrix.matrix()) {
                let mut y = vec![f32::NAN; rows * outputs];
                weights.project(&x, None, Columns::all(&mut y, outputs));
                products.push(y);
            }
            assert!(products.len() > 1);
            for product in &products {
                let format = F::BLOCK_TYPE;
                assert_eq!(product, &products[0], "{format:?} {rows} {inputs} {outputs}");
            }
        }
    }
    check::<Q8_0>();
    check::<Q4_0>();
    check::<Q4K>();
    check::<Q5K>();
    check::<Q6K>();
}

/// The largest numbers of all signs: totals must not saturate in 16 bits.
#[test]
fn extreme_numbers_do_not_saturate() {
    fn check<F: GroupFormat>() {
        let (block_type, inputs) = (F::BLOCK_TYPE, 256);
        for byte in [0x00, 0x7f, 0x80, 0xff, 0x81] {
            let mut block = vec![byte; block_type.bytes()];
            let fields: &[usize] = match block_type {
                BlockType::Q6K => &[208],
                BlockType::Q4K | BlockType::Q5K => &[0, 2],
                _ => &[0],
            };
            for field in fields {
                block[*field..][..2].copy_from_slice(&half::f16::ONE.to_le_bytes());
            }
            let blocks = block.repeat(inputs / block_type.values());
            let matrix = StoredMatrix::new([StoredRow::Blocks(block_type, &blocks)], inputs);
            for (even, odd) in [(1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)] {
                let x: Vec<f32> = [even, odd].repeat(inputs / 2);
                for weights in packed::<F>(&matrix) {
                    let mut row = vec![0.0; inputs];
                    weights.unpack_row(0, &mut row);
                    let exact: f64 =
                        row.iter().zip(&x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    let mut y = [0.0];
                    weights.project(&x, None, Columns::all(&mut y, 1));
                    let magnitude: f64 = row.iter().map(|weight| f64::from(weight.abs())).sum();
                    let error = (f64::from(y[0]) - exact).abs();
                    assert!(
                        error <= 1e-5 * (magnitude + 64.0 * 256.0),
                        "{block_type:?} {byte} {y:?} {exact}"
                    );
                }
            }
        }
    }
    check::<Q8_0>();
    check::<Q4_0>();
    check::<Q4K>();
    check::<Q5K>();
    check::<Q6K>();
}

#[test]
fn numbers_that_are_not_finite_stay_so() {
    fn check<F: GroupFormat>() {
        let inputs = 64;
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut numbers = vec![0.5; inputs];
            numbers[40] = bad;
            let good = vec![0.5; inputs];
            for (weights, x) in [(&numbers, &good), (&good, &numbers)] {
                let weights: Vec<_> =
                    weights.iter().map(|number: &f32| number.to_le_bytes()).collect();
                let matrix = StoredMatrix::new([StoredRow::F32(&weights)], inputs);
                let product = |weights: &dyn PackedWeights| {
                    let mut y = [0.0];
                    weights.project(x, None, Columns::all(&mut y, 1));
                    y[0]
                };
                for weights in packed::<F>(&matrix) {
                    let y = product(&*weights);
                    assert!(y.is_nan(), "{bad} gives {y} in {:?}", F::BLOCK_TYPE);
                }
                // Tiles do not quantise activations, so infinity stays infinity.
                for set in InstructionSet::available() {
                    for weights in with_every_kernel::<F, _>(set, Pack(&matrix)) {
                        let y = product(&*weights);
                        assert!(!y.is_finite(), "{bad} gives {y} in {:?}", F::BLOCK_TYPE);
                    }
                }
            }
        }
    }
    check::<Q8_0>();
    check::<Q4_0>();
}
