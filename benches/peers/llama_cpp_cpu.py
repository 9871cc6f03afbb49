"""Measures llama.cpp through its C interface, with one sequence per row.

See job.py for the arguments; FOLDER is the path of a GGUF file without ".gguf".
"""

import os

import llama_cpp as c
import numpy as np

import job

BATCH = 2048


class Engine:
    def __init__(self):
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(f"{job.FOLDER}.gguf".encode(), c.llama_model_default_params())
        assert self.model, "the model does not load"
        self.context = None
        self.one_pass_size = None
        self._resize(33, 640)

    def _resize(self, rows, tokens):
        """Replaces the context by one for `rows` sequences of `tokens` tokens."""
        if self.context:
            c.llama_batch_free(self.batch)
            c.llama_free(self.context)
        parameters = c.llama_context_default_params()
        # Each row has its own cache. In one cache for all rows, attention also visits the other rows' cells,
        # which is slower.
        parameters.n_ctx = rows * tokens
        parameters.n_batch = BATCH
        parameters.n_seq_max = rows
        parameters.n_threads = parameters.n_threads_batch = job.THREADS
        parameters.kv_unified = False
        self.context = c.llama_init_from_model(self.model, parameters)
        assert self.context, "no context"
        self.memory = c.llama_get_memory(self.context)
        self.vocabulary = c.llama_vocab_n_tokens(c.llama_model_get_vocab(self.model))
        self.batch = c.llama_batch_init(BATCH, 0, 1)

    def prefill(self, prompt):
        self._clear()
        self._read({0: prompt}, 0)

    def decode(self, prompts, steps):
        self._clear()
        tokens = self._read(dict(enumerate(prompts)), 0)
        seconds = []
        for i in range(steps):
            seconds.append(job.timed(lambda: tokens.update(self._step(tokens, job.PROMPT + i))))
        return seconds

    def job(self, prompts, shared, new):
        if new == 1:
            return self._one_pass(prompts, shared)
        self._clear()
        self._read({len(prompts): prompts[0][:shared]}, 0)
        for row in range(len(prompts)):
            c.llama_memory_seq_cp(self.memory, len(prompts), row, -1, -1)
        tokens = self._read({row: prompt[shared:] for row, prompt in enumerate(prompts)}, shared)
        for i in range(new - 1):
            tokens = self._step(tokens, len(prompts[0]) + i)

    def _one_pass(self, prompts, shared):
        """Reads as many prompts at once as fill a batch, but at least one."""
        own = len(prompts[0]) - shared
        rows = max(1, BATCH // own)
        if self.one_pass_size != (rows, own):
            self.one_pass_size = (rows, own)
            self._resize(rows + 1, 256 * -(-(shared + own) // 256))
        self._clear()
        self._read({rows: prompts[0][:shared]}, 0)
        for start in range(0, len(prompts), rows):
            part = prompts[start : start + rows]
            for row in range(len(part)):
                c.llama_memory_seq_rm(self.memory, row, -1, -1)
                c.llama_memory_seq_cp(self.memory, rows, row, -1, -1)
            self._read({row: prompt[shared:] for row, prompt in enumerate(part)}, shared)

    def _clear(self):
        c.llama_memory_clear(self.memory, True)

    def _step(self, tokens, position):
        return self._read({row: [token] for row, token in tokens.items()}, position)

    def _read(self, rows, position):
        """Reads tokens of rows from `position` on, and returns each row's most probable next token."""
        entries = [
            (token, position + i, row, i + 1 == len(tokens))
            for row, tokens in rows.items()
            for i, token in enumerate(tokens)
        ]
        following = {}
        for start in range(0, len(entries), BATCH):
            part = entries[start : start + BATCH]
            batch = self.batch
            batch.n_tokens = len(part)
            for i, (token, at, row, is_last) in enumerate(part):
                batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, at, 1
                batch.seq_id[i][0], batch.logits[i] = row, is_last
            assert c.llama_decode(self.context, batch) == 0
            for i, (_, _, row, is_last) in enumerate(part):
                if is_last:
                    logits = c.llama_get_logits_ith(self.context, i)
                    following[row] = int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())
        return following


if __name__ == "__main__":
    # llama.cpp must be compiled for every instruction set that it supports and the processor has.
    system, flags = c.llama_print_system_info().decode(), open("/proc/cpuinfo").read().split()
    for flag, name in [("avx2", "AVX2"), ("avx512f", "AVX512"), ("avx512_bf16", "AVX512_BF16")]:
        assert flag not in flags or f" {name} = 1" in system, system
    weights = os.environ.get("PEERS_WEIGHTS", "bf16")
    job.measure(job.Report("llama.cpp", f"llama-cpp-python {c.__version__}", weights), Engine())
