"""Measures vLLM on the CPU, in this process, step by step; see job.py for the arguments."""

import os

# Two threads for the model and no reserved core; the cache size is in GiB.
os.environ |= {"OMP_NUM_THREADS": "2", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_CPU_KVCACHE_SPACE": "4"}
# The engine runs in this process, so that a call is a step; no network access.
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "HF_HUB_OFFLINE": "1"}

import time

import torch
import vllm
from vllm import LLM, SamplingParams

import job


class Engine:
    def __init__(self):
        self.llm = LLM(
            model=job.FOLDER,
            skip_tokenizer_init=True,
            dtype="bfloat16",
            max_model_len=4096,
            max_num_seqs=32,
            max_num_batched_tokens=4096,
            enable_prefix_caching=True,
            disable_log_stats=True,
            async_scheduling=False,
        )
        self._generate([job.tokens(64)] * 2, 4)

    def prefill(self, prompt):
        self._generate([prompt], 1)

    def decode(self, prompts, steps):
        engine = self.llm.llm_engine
        for i, prompt in enumerate(prompts):
            engine.add_request(f"{time.monotonic_ns()}-{i}", {"prompt_token_ids": prompt}, sampling(1 + steps + len(prompts)))
        begun = {}
        # Runs until all prompts are read. The prompts read first have some generated tokens by then.
        while len(begun) < len(prompts):
            begun |= {output.request_id: True for output in engine.step()}
        seconds = []
        for _ in range(steps):
            outputs = []
            seconds.append(job.timed(lambda: outputs.extend(engine.step())))
            assert len(outputs) == len(prompts)
        engine.abort_request(list(begun))
        while engine.has_unfinished_requests():
            engine.step()
        return seconds

    def job(self, prompts, shared, new):
        # vLLM finds the shared prefix by itself.
        self._generate(prompts, new)

    def _generate(self, prompts, count):
        prompts = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(prompts, sampling(count), use_tqdm=False)
        assert [len(output.outputs[0].token_ids) for output in outputs] == [count] * len(prompts)


def sampling(count):
    return SamplingParams(temperature=0, max_tokens=count, min_tokens=count, ignore_eos=True, detokenize=False)


if __name__ == "__main__":
    engine = Engine()
    from vllm.platforms import current_platform

    version = f"{vllm.__version__}, torch {torch.__version__}, {type(current_platform).__name__}"
    job.measure(job.Report("vLLM", version, "bf16"), engine)
