//! Runs the fuzz targets for a short time, without instrumentation: on the seeds, on inputs that once failed, and on
//! mutations of both. `fuzz/campaign.sh` runs them for hours.

#[path = "../fuzz/src/lib.rs"]
#[expect(
    unreachable_pub,
    reason = "cargo-fuzz calls the functions, which are public in their own crate"
)]
mod targets;

use std::fs;
use std::path::Path;

use proptest::prelude::Rng;
use proptest::test_runner::{RngAlgorithm, TestRng};

/// The number of mutated inputs of each target.
const MUTATIONS: usize = 300;

/// Returns the files of a target: its `seeds`, or its `failures`, the inputs that once failed.
fn inputs(kind: &str, target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(kind).join(target);
    let files = fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<_> = files.map(|file| file.expect("a readable folder").path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("a readable file")).collect()
}

/// Replaces, inserts, repeats or removes some bytes.
fn mutate(input: &mut Vec<u8>, random: &mut TestRng) {
    for _ in 0..=random.next_u32() % 4 {
        let at = random.next_u32() as usize % (input.len() + 1);
        let length = (random.next_u32() as usize % 9).min(input.len() - at);
        let byte = random.next_u32() as u8;
        match random.next_u32() % 4 {
            0 if at < input.len() => input[at] = byte,
            1 => input.insert(at, byte),
            2 => {
                let piece = input[at..at + length].to_vec();
                input.splice(at..at, piece);
            }
            _ => drop(input.drain(at..at + length)),
        }
    }
}

fn run(name: &str) {
    let (_, target) = targets::TARGETS.iter().find(|(of, _)| *of == name).expect("a target");
    let seeds = inputs("seeds", name);
    assert!(!seeds.is_empty(), "fuzz/seeds/{name} has no files");
    let inputs = [seeds, inputs("failures", name)].concat();
    inputs.iter().for_each(|input| target(input));
    let mut random = TestRng::deterministic_rng(RngAlgorithm::XorShift);
    for number in 0..MUTATIONS {
        let mut input = inputs[number % inputs.len()].clone();
        mutate(&mut input, &mut random);
        target(&input);
    }
}

macro_rules! tests {
    ($($name:ident),*) => {
        $(
            #[test]
            fn $name() {
                run(stringify!($name));
            }
        )*

        #[test]
        fn every_target_has_a_test() {
            let tested = [$(stringify!($name)),*];
            assert_eq!(targets::TARGETS.map(|(name, _)| name), tested);
        }
    };
}

tests!(
    answer_parser,
    prompt_template,
    trec,
    document_file,
    serde_types,
    chat_template,
    tokenizer_file,
    document,
    config,
    safetensors,
    gguf,
    service_request,
    server_reply
);
