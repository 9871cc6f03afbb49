//! Compares two runs by several measures and tests whether the difference is significant. Runs and
//! relevance judgements (qrels) are TREC files; the measures equal trec_eval's.
//!
//! ```sh
//! cargo run -p erank-examples --example evaluate -- QRELS BEFORE.run AFTER.run [MEASURE…]
//! ```

use std::error::Error;
use std::fs::File;
use std::io::BufReader;

use erank_core::evaluation::Comparison;
use erank_core::metrics::Measure;
use erank_core::trec::{Qrels, Run};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [qrels, before, after, measures @ ..] = arguments.as_slice() else {
        return Err("give the files: QRELS BEFORE.run AFTER.run [MEASURE…]".into());
    };
    let qrels = Qrels::read(open(qrels)?)?;
    let (before, after) = (Run::read(open(before)?)?, Run::read(open(after)?)?);
    let measures: Vec<Measure> = match measures {
        [] => vec![Measure::ndcg(10), Measure::average_precision(), Measure::reciprocal_rank(10)],
        names => names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?,
    };

    println!("{:<10} {:>8} {:>8} {:>8} {:>7}", "", "before", "after", "gain", "p");
    for measure in measures {
        // The mean is over every query of the qrels; a query without results has the value 0.
        let (before, after) = (measure.evaluate(&qrels, &before), measure.evaluate(&qrels, &after));
        let gain = Comparison::between(&before, &after)?;
        let mean = |mean: Option<f64>| mean.map_or("-".into(), |mean| format!("{mean:.4}"));
        // The paired t-test is usual in this field; `randomisation_test` does not assume normality.
        let p = gain.t_test().map_or("-".into(), |test| format!("{:.4}", test.p_value));
        println!(
            "{:<10} {:>8} {:>8} {:>8} {p:>7}",
            measure.to_string(),
            mean(before.mean()),
            mean(after.mean()),
            mean(gain.mean()),
        );
    }
    Ok(())
}

fn open(path: &str) -> Result<BufReader<File>, Box<dyn Error>> {
    File::open(path).map(BufReader::new).map_err(|error| format!("{path}: {error}").into())
}
