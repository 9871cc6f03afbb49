//! Comparison of the measures and the t-test with trec_eval and scipy. `trec/make.py` created the files
//! and documents the commands.

use std::collections::BTreeMap;

use erank_core::evaluation::{Comparison, QueryValues};
use erank_core::metrics::Measure;
use erank_core::trec::{Qrels, Run};

struct Data {
    qrels: Qrels,
    before: Run,
    after: Run,
}

impl Data {
    fn read() -> Self {
        let run = |text: &str| Run::read(text.as_bytes()).expect("a run");
        Self {
            qrels: Qrels::read(include_str!("trec/qrels.txt").as_bytes()).expect("qrels"),
            before: run(include_str!("trec/before.run")),
            after: run(include_str!("trec/after.run")),
        }
    }

    fn values(&self, measure: &str) -> [QueryValues; 2] {
        let measure: Measure = measure.parse().expect("a measure");
        [&self.before, &self.after].map(|run| measure.evaluate(&self.qrels, run))
    }
}

/// Returns the fields of each line of a file.
fn rows<const N: usize>(text: &str) -> impl Iterator<Item = [&str; N]> {
    text.lines().map(|line| line.split('\t').collect::<Vec<_>>().try_into().expect("the fields"))
}

fn number(text: &str) -> f64 {
    text.parse().expect("a number")
}

#[test]
fn measures_equal_trec_eval() {
    let data = Data::read();
    let mut expected: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    for [measure, run, query, value] in rows(include_str!("trec/expected.tsv")) {
        expected.entry((measure, run)).or_default().insert(query, number(value));
    }
    assert_eq!(expected.len(), 2 * 22);
    for ((measure, run), expected) in expected {
        let values = &data.values(measure)[usize::from(run == "after")];
        let mean = values.mean().expect("queries");
        let all: BTreeMap<_, _> = values.iter().chain([("all", mean)]).collect();
        assert!(all.keys().eq(expected.keys()), "{measure} {run}: other queries");
        for (query, expected) in expected {
            let value = all[query];
            assert!((value - expected).abs() < 1e-11, "{measure} {run} {query}: {value}");
        }
    }
}

#[test]
fn t_test_equals_scipy() {
    let data = Data::read();
    for [measure, t, p] in rows(include_str!("trec/t_test.tsv")) {
        let [before, after] = data.values(measure);
        let comparison = Comparison::between(&before, &after).expect("the same queries");
        let test = comparison.t_test().expect("queries that differ");
        assert_eq!(test.degrees_of_freedom, data.qrels.queries().len() - 1);
        assert!((test.t - number(t)).abs() < 1e-8, "{measure}: {test:?}");
        assert!((test.p_value - number(p)).abs() < 1e-9, "{measure}: {test:?}");
    }
}

/// The two tests agree because the differences of this data set are close to normal.
#[test]
fn randomisation_test_is_close_to_the_t_test() {
    let [before, after] = Data::read().values("nDCG@10");
    let comparison = Comparison::between(&before, &after).expect("the same queries");
    let by_t = comparison.t_test().expect("queries that differ").p_value;
    let by_randomisation = comparison.randomisation_test(20_000, 1).expect("queries");
    assert!((by_randomisation - by_t).abs() < 0.03, "{by_randomisation} {by_t}");
}

#[test]
fn written_run_has_the_same_values_and_queries_can_be_removed() {
    let mut data = Data::read();
    let before = data.values("AP");
    for run in [&mut data.before, &mut data.after] {
        let mut file = Vec::new();
        run.write(&mut file, "again").expect("written");
        *run = Run::read(&file[..]).expect("read");
    }
    assert_eq!(data.values("AP"), before);

    data.qrels.retain_queries(|query| data.before.has_query(query));
    assert_eq!(data.qrels.queries().len(), before[0].iter().len() - 1);
    assert!(data.values("AP")[0].get("not-retrieved").is_none());
}
