//! The texts at the end of `--help`: input, output and exit codes.

/// The exit codes of `erank`, `erank rerank` and `erank search`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0    All documents were ranked.
  1    A file, the model or the output failed. Documents that were ranked before are printed.
  2    The command line is invalid.
  3    Some documents could not be ranked, or only with less than was requested, such as fewer
       samples. They are listed with line and reason.
  4    --timeout expired. Documents that were ranked before are printed.
  130  Ctrl-C was pressed. Documents that were ranked before are printed; a second Ctrl-C quits
       at once.";

/// The input and the JSON output of `erank rerank` and `erank search`.
pub(crate) const RERANK: &str = "\
The format of the input is recognised by its text, and then by the ending of the file's name:
  plain text   Each line that is not blank is a document. Its id is its line number.
  JSON         {\"id\": \"doc-7\", \"title\": \"…\", \"text\": \"…\", \"score\": 12.3}
               One object per line, or an array of objects or of strings. Only the text is
               required. \"score\" is the score of the first stage. Fields of the same meaning in
               BEIR, Anserini, MS MARCO, BRIGHT, rank_llm and Elasticsearch are known.
  CSV, TSV     A header names the fields. Fields in quotes may hold line breaks. Without a header,
               a line of TSV is an id, a tab and the text, or the columns of MS MARCO's files.
Files may be compressed with gzip or zstd. Text is UTF-8, or UTF-16 with a byte order mark.
In a folder, each .txt or .md file is a document with its path as id, and each .jsonl, .ndjson,
.json, .csv or .tsv file is read as above. Hidden files, links to folders, pipes, sockets and
devices are left out. A title is put before the text. Ids are kept as they are written.
A line that cannot be used is listed with the reason; the other lines are ranked.

--json prints one object:
  model, first_pass_model (of --first-pass, or null), query, instruction
  template     name of the prompt: \"erank\" or \"qwen3-reranker\"
  stopped      null, \"interrupted\" or \"timeout\"
  counts       documents = ranked + beyond_top_k + below_min_score + unscored;
               partially_scored: how many of the documents with a score lack something
  tokens       prompt, generated
  seconds      time of ranking, without loading the model
  min_score    value of --min-score
  documents[]  best first: rank, line, id, score, relevance (from 0 to 1, before --hybrid),
               relevance_probability (by --calibration), std_dev, integer, probability,
               probability_weighted, expected_value, entropy, first_stage_score,
               first_stage_rank (both by the \"score\" of the input), reasoning, mode (\"reason\",
               \"answer_only\": with --first-pass, its model gave the answer), samples (number of
               samples in the mean score), truncated, windows[] (with --windows: the windows
               that the score comes from, best first, with start and end in bytes of the text, and
               score), finish_reason (\"answered\", \"end_of_turn\", \"forced\"), tokens
  below_min_score[]  documents below --min-score, best first, as documents[], with rank null
  unscored[]   documents without a score, by line: line, id, reason
  partially_scored[]  documents that lack their reasoning or some samples, by line: line, id,
               reason
\"line\" is the number of the element in a JSON array, and of the document in a folder.
Unknown values are null. Diagnostics are written to standard error.";

/// The input and the output files of `erank eval`.
pub(crate) const EVAL: &str = "\
Input is the run of a first stage, relevance judgements (qrels), and the texts:
  TREC        --run RUN --qrels QRELS --queries TEXTS --corpus TEXTS. RUN may also have a header such
              as query_id, doc_id, score, or be JSON, such as {\"q1\": {\"d7\": 12.3}}.
  BEIR        --run RUN --beir FOLDER, with corpus.jsonl, queries.jsonl and qrels/SPLIT.tsv, also
              with .gz or .zst after these names
  JSON lines  --jsonl FILE --qrels QRELS, with one query per line:
              {\"id\": \"q1\", \"query\": \"…\", \"documents\": [{\"id\": \"d7\", \"text\": \"…\", \"score\": 12.3}]}
              or an array of such objects, or the requests of rank_llm
TEXTS are read as the documents of `erank rerank` are, except that each line of plain text begins
with the id and a tab. A query in JSON may have an \"instruction\", the goal of this query, which
replaces that of --instruction and --task, and \"excluded_ids\", the documents that are left out
before the depth is counted, as in BRIGHT.
QRELS have TREC's four fields, or BEIR's three with or without a header, or the columns of a
header such as query_id, doc_id, relevance; or they are JSON. A grade may be written as 1.0.
Queries without judgements are skipped.

Output is written to the folder of --output:
  scores.jsonl     The model's answer for each document, written as soon as it is known. The same
                   command resumes from this file and recomputes nothing.
  first_stage.run, reranked.run, hybrid.run   Runs in TREC's format.
  report.json      All figures, query by query. --json prints it.
  report.html      The figures, and the documents and the reasoning with the largest gains and losses, as a page.
  gains.svg        The gain or loss of each query.
  reliability.svg  With --calibrate, the relevant fraction of documents by their probability.
Documents that cannot be scored rank last, in the order of the first stage. If the reason may be
temporary, the next start tries them again.

--calibrate writes a JSON object: erank_calibration (the version of the format), score, mode and answer_range
(of the scores), points[] (a score and the probability of relevance; between them, the probability is
linear), settings (as in scores.jsonl) and fitted_on (queries, documents, relevant documents).";

/// The exit codes of `erank eval`.
pub(crate) const EVAL_EXIT_CODES: &str = "\
Exit codes:
  0    All documents were scored.
  1    A file, the model or the output failed. The scores so far are kept.
  2    The command line is invalid.
  3    Some documents could not be scored. They are listed with the reason.
  4    --timeout expired. The scores so far are kept.
  130  Ctrl-C was pressed. The scores so far are kept; a second Ctrl-C quits at once.";

/// The use of `erank quantize`.
pub(crate) const QUANTIZE: &str = "\
Example:
  erank quantize --model ERank-4B --to q8_0 erank-4b-q8_0.gguf
  erank rerank --model erank-4b-q8_0.gguf ...

A matrix whose rows are not whole blocks of the format becomes Q8_0 or else BF16. llama.cpp reads the file, too.";

/// The output of `erank inspect`.
pub(crate) const INSPECT: &str = "\
The table shows the tensors by their format in the files and in memory. Projections multiply matrices
in the format in memory; Q formats also round activations to 8 bits. The weights are loaded only for
--logprobs and --compare. The verdict at the end warns of what is unusual about the files, such as
keys of config.json that are ignored; what cannot be computed as transformers does is an error
instead.

--json prints one object:
  model, description
  cost         tensors[]: file_format, memory_format, count, file_bytes, memory_bytes;
               weight_bytes: in memory; kv_cache: format, bytes_per_token, max_tokens (of the longest
               sequence), bytes_of_max_tokens, budget_bytes (--kv-cache-mib, or the default as of now)
  vocab_size, prompt (null with --ids), query_truncated, document_truncated
  tokens[]     position, id, text, control, and next[]: the most probable next tokens after that
               position, each with id, text and log_prob (natural logarithm)
  verdict      files, architecture, tokenizer, template, precision, memory: a phrase on each;
               warnings[]: what is unusual about the model although it can be loaded

With --compare, the object has model, description and cost, and instead of the others:
  compared_with     model, description and cost of the other model
  documents         number of documents that both models answered
  kl_divergence     mean and worst: Kullback-Leibler divergence of --model's distribution over the
                    answers from the other model's, in nats; null without documents
  changed_integers  number of documents whose most probable integers differ
  kendall_tau       mean and worst over the queries: Kendall's tau-b (Biometrika 1945) of the scores
                    N x P(N) by both models; null if it is undefined, as with fewer than two documents
  queries[]         query, kendall_tau, and documents[]: line, id, kl_divergence, and integers and
                    scores by --model and by the other model
  uncompared[]      line, id, reason; then the exit code is 3

With --self-test, the object has:
  device, description   what was tested
  checks[]          weights, kv_cache, reasoning (whether the model thinks), documents, changed_integers and
                    kl_divergence as above, beside the portable kernels with the same formats, and passed
  passed            whether all checks passed; otherwise, the exit code is 1";

#[cfg(feature = "serve")]
pub(crate) const SERVE: &str = "\
Examples:
  erank serve
      serves the bundled model at http://127.0.0.1:8080, where a page shows it at work

  erank serve --model Alibaba-NLP/ERank-4B --listen 0.0.0.0:8080 --api-keys keys.txt

  curl -s localhost:8080/v1/rerank -H 'content-type: application/json' -d '{
      \"query\": \"how do bees make honey\",
      \"documents\": [\"Wasps make paper nests.\", \"Bees fan nectar dry, which makes it honey.\"]}'

The service has no TLS. For HTTPS, put a reverse proxy in front of it. docs/service.md describes the requests.";
