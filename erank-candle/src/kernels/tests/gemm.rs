use half::{bf16, f16};

use super::super::arch::InstructionSet;
use super::super::formats::{self, WeightFormat};
use super::super::ggml::BlockType;
use super::super::micro_kernel::KernelVisitor;
use super::super::stored::{StoredMatrix, StoredRow};
use super::super::tests::matrix::RandomMatrix;
use super::super::tests::oracle;
use super::*;

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
                if let Some(block_type) = K::BLOCK_TYPE {
                    let blocks = RandomMatrix::of_blocks(block_type, outputs, inputs, 20);
                    check_rows(kernel, self.0, &blocks.matrix());
                    continue;
                }
                // These numbers are exact in BF16 and F16.
                let numbers: Vec<f32> =
                    (0..outputs * inputs).map(|i| (i % 251) as f32 - 125.0).collect();
                let f32s: Vec<[u8; 4]> = numbers.iter().map(|x| x.to_le_bytes()).collect();
                let bf16s: Vec<[u8; 2]> =
                    numbers.iter().map(|x| bf16::from_f32(*x).to_le_bytes()).collect();
                let f16s: Vec<[u8; 2]> =
                    numbers.iter().map(|x| f16::from_f32(*x).to_le_bytes()).collect();
                let rows = [StoredRow::F32(&f32s), StoredRow::F16(&f16s), StoredRow::Bf16(&bf16s)];
                for stored in rows {
                    check_rows(kernel, self.0, &StoredMatrix::new([stored], inputs));
                }
            }
        }
    }

    every_kernel(Check);
}

/// Packs a matrix that the kernel's format represents exactly, and compares each row.
fn check_rows<K: MicroKernel>(kernel: K, set: InstructionSet, matrix: &StoredMatrix<'_>) {
    let packed = PackedMatrix::pack(kernel, matrix).expect("memory");
    for output in 0..matrix.outputs() {
        let [mut row, mut expected] = [(); 2].map(|()| vec![f32::NAN; matrix.inputs()]);
        packed.unpack_row(output, &mut row);
        matrix.row(output).to_f32(&mut expected);
        assert_eq!(row, expected, "{} {kernel:?}", set.name());
    }
}

#[test]
fn pack_dequantises_blocks_of_other_types() {
    let blocks = RandomMatrix::of_blocks(BlockType::Q6K, 17, 256, 24);
    for format in [WeightFormat::F32, WeightFormat::Bf16] {
        let packed =
            formats::pack(format, InstructionSet::best(), &blocks.matrix()).expect("memory");
        for (output, row) in blocks.rows().into_iter().enumerate() {
            let [mut actual, mut expected] = [(); 2].map(|()| vec![f32::NAN; 256]);
            packed.unpack_row(output, &mut actual);
            row.to_f32(&mut expected);
            if format == WeightFormat::Bf16 {
                expected.iter_mut().for_each(|x| *x = bf16::from_f32(*x).to_f32());
            }
            assert_eq!(actual, expected, "{format}");
        }
    }
    let error = formats::pack(WeightFormat::Q4K, InstructionSet::best(), &blocks.matrix());
    assert!(error.expect_err("another type").to_string().contains("only read from files"));
}

/// All F16 numbers but infinities and NaNs, and activations that F16 cannot hold.
#[test]
fn f16_weights_give_the_bits_of_the_same_numbers_in_f32() {
    let numbers = (0..=u16::MAX).map(f16::from_bits).filter(|number| number.is_finite());
    let bytes: Vec<[u8; 2]> = numbers.map(f16::to_le_bytes).collect();
    for set in InstructionSet::available() {
        for (rows, inputs, outputs) in [(1, 1, 1), (2, 33, 17), (5, 1100, 57), (9, 100, 48)] {
            let bytes = &bytes[bytes.len() - inputs * outputs..];
            let matrix = StoredMatrix::new([StoredRow::F16(bytes)], inputs);
            let x: Vec<f32> = oracle::numbers(rows * inputs, 25).map(|x| x * 1e5).collect();
            let product = |format| {
                let mut y = vec![f32::NAN; rows * outputs];
                let weights = formats::pack(format, set, &matrix).expect("memory");
                weights.project(&x, None, Columns::all(&mut y, outputs));
                y
            };
            assert_eq!(product(WeightFormat::F16), product(WeightFormat::F32), "{}", set.name());
        }
    }
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
                let matrices = [21, 22].map(|seed| RandomMatrix::new::<K>(outputs, inputs, seed));
                check(kernel, self.0, rows, &matrices);
            }
        }
    }

    every_kernel(Check);
}

fn check<K: MicroKernel>(kernel: K, set: InstructionSet, rows: usize, stored: &[RandomMatrix; 2]) {
    let [first, second] = &stored
        .each_ref()
        .map(|stored| PackedMatrix::pack(kernel, &stored.matrix()).expect("memory"));
    let (inputs, outputs) = (first.inputs(), first.outputs());
    let x: Vec<f32> = oracle::numbers(rows * inputs, 5).collect();
    let mut y = vec![f32::NAN; rows * outputs];
    first.project(&x, None, Columns::all(&mut y, outputs));
    let mut other = vec![f32::NAN; rows * outputs];
    second.project(&x, None, Columns::all(&mut other, outputs));
    let mut added = other.clone();
    first.project_add(&x, Columns::all(&mut added, outputs));
    let mut gated = vec![f32::NAN; rows * outputs];
    let matrices = [first, second];
    multiply(&x, None, &matrices, Columns::all(&mut gated, outputs), Epilogue::SwiGlu);
    for (row, x) in x.chunks_exact(inputs).enumerate() {
        let x = K::round_activations(x);
        for output in 0..outputs {
            let index = row * outputs + output;
            let (a, b) = (y[index], other[index]);
            assert_eq!(added[index], b + a);
            assert_eq!(gated[index], silu(a) * b);
            for (product, weights, stored) in [(a, first, &stored[0]), (b, second, &stored[1])] {
                let mut weights_row = vec![0.0; inputs];
                weights.unpack_row(output, &mut weights_row);
                let terms = match K::round_weights(&weights_row) {
                    Some(rounded) => x.iter().copied().zip(rounded).collect(),
                    None => stored
                        .terms(output, &x)
                        .unwrap_or_else(|| x.iter().copied().zip(weights_row).collect()),
                };
                let exact = oracle::dot(0.0, terms.into_iter());
                exact.assert_close(product, K::Isa::UNITS_OF_ROUNDING * (inputs + 1), set.name());
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
            let matrix = RandomMatrix::new::<K>(40, 71, 23);
            let inputs = matrix.inputs;
            let weights = PackedMatrix::pack(kernel, &matrix.matrix()).expect("memory");
            let x: Vec<f32> = oracle::numbers(11 * inputs, 6).collect();
            let product = |x: &[f32]| {
                let mut y = vec![0.0; x.len() / inputs * 40];
                weights.project(x, None, Columns::all(&mut y, 40));
                y
            };
            let all = product(&x);
            for (row, x) in x.chunks_exact(inputs).enumerate() {
                let alone = product(x);
                assert_eq!(alone, all[row * 40..(row + 1) * 40], "{} row {row}", self.0.name());
            }
        }
    }

    every_kernel(Check);
}

/// Many outputs are written past the caches, and many long rows are multiplied in several passes.
#[test]
fn large_products_have_the_bits_of_small_ones() {
    for format in [WeightFormat::F32, WeightFormat::Bf16, WeightFormat::Q8_0] {
        for (rows, inputs, outputs) in [(70, 32, 16_400), (130, 4_000, 48)] {
            let numbers: Vec<f32> = oracle::numbers(outputs * inputs, 26).collect();
            let numbers: Vec<[u8; 4]> = numbers.iter().map(|number| number.to_le_bytes()).collect();
            let matrix = StoredMatrix::new([StoredRow::F32(&numbers)], inputs);
            let weights = formats::pack(format, InstructionSet::best(), &matrix).expect("memory");
            let x: Vec<f32> = oracle::numbers(rows * inputs, 27).collect();
            let product = |x: &[f32]| {
                // Only lines of the caches are written past them.
                let mut y = vec![SumRow([f32::NAN; NR]); x.len() / inputs * outputs / NR];
                let columns = Columns::all(bytemuck::cast_slice_mut(&mut y), outputs);
                weights.project(x, None, columns);
                y
            };
            let all = product(&x);
            let few = x.chunks(10 * inputs).flat_map(product);
            let what = format!("{format} {rows} {inputs} {outputs}");
            assert!(all.iter().zip(few).all(|(all, few)| all.0 == few.0), "{what}");
        }
    }
}
