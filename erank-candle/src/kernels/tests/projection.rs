use super::super::stored::StoredRow;
use super::super::tests::oracle;
use super::*;

const INPUTS: usize = 37;

fn stored(outputs: usize, seed: u64) -> Vec<[u8; 4]> {
    oracle::numbers(outputs * INPUTS, seed).map(f32::to_le_bytes).collect()
}

fn pack(set: InstructionSet, parts: &[(WeightFormat, &[[u8; 4]])]) -> Projection {
    let part = |(format, numbers)| (format, StoredMatrix::new([StoredRow::F32(numbers)], INPUTS));
    let parts: Vec<_> = parts.iter().copied().map(part).collect();
    Projection::pack(&parts, set).expect("memory")
}

#[test]
fn project_of_parts_gives_the_bits_of_each_part() {
    let (a, b, c) = (stored(20, 1), stored(5, 2), stored(16, 3));
    let parts: [(WeightFormat, &[_]); 3] =
        [(WeightFormat::Bf16, &a), (WeightFormat::F32, &b), (WeightFormat::Bf16, &c)];
    let norm = Norm { weight: oracle::numbers(INPUTS, 4).collect(), epsilon: 1e-6 };
    for set in InstructionSet::available() {
        for rows in [1, 3, 20] {
            let x: Vec<f32> = oracle::numbers(rows * INPUTS, 5).collect();
            let all = pack(set, &parts);
            assert_eq!((all.outputs(), all.inputs()), (41, INPUTS));
            let mut y = vec![f32::NAN; rows * 41];
            all.project(&x, Some(&norm), &mut y);
            let mut sum = vec![1.0; rows * 41];
            all.project_add(&x, &mut sum);
            let mut first = 0;
            for part in parts {
                let one = pack(set, &[part]);
                let mut expected = vec![f32::NAN; rows * one.outputs()];
                one.project(&x, Some(&norm), &mut expected);
                let mut expected_sum = vec![1.0; rows * one.outputs()];
                one.project_add(&x, &mut expected_sum);
                for row in 0..rows {
                    let columns = row * 41 + first..row * 41 + first + one.outputs();
                    let of_part = row * one.outputs()..(row + 1) * one.outputs();
                    assert_eq!(y[columns.clone()], expected[of_part.clone()], "{}", set.name());
                    assert_eq!(sum[columns], expected_sum[of_part], "{}", set.name());
                }
                let (mut actual, mut expected) = (Vec::new(), Vec::new());
                all.extend_with_row(first + one.outputs() - 1, &mut actual);
                one.extend_with_row(one.outputs() - 1, &mut expected);
                assert_eq!(actual, expected, "{}", set.name());
                first += one.outputs();
            }
        }
    }
}

#[test]
fn gate_up_gives_the_same_bits_in_one_pass_and_in_two() {
    let (gate, up) = (stored(40, 6), stored(40, 7));
    let norm = Norm { weight: oracle::numbers(INPUTS, 8).collect(), epsilon: 1e-6 };
    for set in InstructionSet::available() {
        for (gate_format, up_format) in [
            (WeightFormat::Bf16, WeightFormat::Bf16),
            (WeightFormat::F32, WeightFormat::F32),
            (WeightFormat::Bf16, WeightFormat::F32),
            (WeightFormat::F32, WeightFormat::Bf16),
        ] {
            let x: Vec<f32> = oracle::numbers(9 * INPUTS, 9).collect();
            // With two parts, no matrix has the shape of the other projection.
            let parts: Vec<(WeightFormat, &[_])> =
                gate.chunks(16 * INPUTS).map(|part| (gate_format, part)).collect();
            let (whole, divided) = (pack(set, &[(gate_format, &gate)]), pack(set, &parts));
            let up = pack(set, &[(up_format, &up)]);
            let mut expected = vec![f32::NAN; 9 * 40];
            whole.gate_up(&up, &x, &norm, &mut expected);
            let mut actual = vec![f32::NAN; 9 * 40];
            divided.gate_up(&up, &x, &norm, &mut actual);
            assert_eq!(actual, expected, "{} {gate_format:?} {up_format:?}", set.name());
        }
    }
}

#[test]
#[should_panic(expected = "output 41 of 41")]
fn extend_with_row_refuses_an_output_past_the_last() {
    let numbers = stored(41, 1);
    let projection = pack(InstructionSet::best(), &[(WeightFormat::F32, &numbers)]);
    projection.extend_with_row(41, &mut Vec::new());
}
