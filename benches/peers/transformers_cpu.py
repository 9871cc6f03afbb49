"""Measures transformers on the CPU, in batches; see job.py for the arguments."""

import copy
import time

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache

import job

# Batches of 8 are faster for the job than one of 32, because transformers copies the cache at every step.
BATCH = 8


class Engine:
    def __init__(self):
        torch.set_num_threads(job.THREADS)
        self.model = AutoModelForCausalLM.from_pretrained(
            job.FOLDER, dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        assert all(weight.dtype == torch.bfloat16 for weight in self.model.parameters())
        self.prefill(job.tokens(job.PROMPT))

    def prefill(self, prompt):
        self._next([prompt], DynamicCache())

    def decode(self, prompts, steps):
        cache = DynamicCache()
        token = self._next(prompts, cache)
        seconds = []
        for _ in range(steps):
            begin = time.perf_counter()
            token = self._next(token, cache)
            seconds.append(time.perf_counter() - begin)
        return seconds

    def job(self, prompts, shared, new):
        prefix = DynamicCache()
        self._next([prompts[0][:shared]], prefix)
        for i in range(0, len(prompts), BATCH):
            batch = [prompt[shared:] for prompt in prompts[i : i + BATCH]]
            cache = copy.deepcopy(prefix)
            cache.batch_repeat_interleave(len(batch))
            token = self._next(batch, cache)
            for _ in range(new - 1):
                token = self._next(token, cache)

    @torch.inference_mode()
    def _next(self, tokens, cache):
        output = self.model(
            input_ids=torch.as_tensor(tokens), cache=cache, use_cache=True, logits_to_keep=1
        )
        return output.logits[:, -1].argmax(-1, keepdim=True)


if __name__ == "__main__":
    version = f"{transformers.__version__}, torch {torch.__version__}, sdpa"
    job.measure(job.Report("transformers", version, "bf16"), Engine())
