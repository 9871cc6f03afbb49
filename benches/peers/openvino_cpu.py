"""Measures OpenVINO GenAI step by step; see job.py for the arguments (FOLDER is the exported model)."""

import os

import numpy as np
import openvino
import openvino_genai as genai

import job

PROPERTIES = {
    "INFERENCE_PRECISION_HINT": "bf16",
    "INFERENCE_NUM_THREADS": job.THREADS,
    "NUM_STREAMS": "1",
}
# Without BF16 instructions, the default of 8 bits is the smallest and fastest cache.
if "avx512_bf16" in open("/proc/cpuinfo").read():
    PROPERTIES["KV_CACHE_PRECISION"] = "bf16"


class Engine:
    def __init__(self):
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 4
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = 32
        scheduler.max_num_batched_tokens = 4096
        self.pipeline = genai.ContinuousBatchingPipeline(job.FOLDER, scheduler, "CPU", PROPERTIES)
        self.ids = 0
        self._generate([job.tokens(64)] * 2, 4)

    def prefill(self, prompt):
        self._generate([prompt], 1)

    def decode(self, prompts, steps):
        handles = [self._add(prompt, 1 + steps + len(prompts)) for prompt in prompts]
        begun = set()
        # Runs until all prompts are read. The prompts read first have some generated tokens by then.
        while len(begun) < len(handles):
            self.pipeline.step()
            begun |= {i for i, handle in enumerate(handles) if handle.can_read() and handle.read()}
        seconds = []
        for _ in range(steps):
            seconds.append(job.timed(self.pipeline.step))
            assert all(handle.can_read() and handle.read() for handle in handles)
        for handle in handles:
            handle.stop()
        while self.pipeline.has_non_finished_requests():
            self.pipeline.step()
        return seconds

    def job(self, prompts, shared, new):
        # OpenVINO shares a prefix only once it has been read, so the shared prefix is sent first.
        self._generate([prompts[0][:shared]], 1)
        self._generate(prompts, new)

    def _add(self, prompt, count):
        self.ids += 1
        return self.pipeline.add_request(self.ids, tensor(prompt), config(count))

    def _generate(self, prompts, count):
        outputs = self.pipeline.generate([tensor(prompt) for prompt in prompts], [config(count)] * len(prompts))
        assert [len(output.m_generation_ids[0]) for output in outputs] == [count] * len(prompts)


def tensor(prompt):
    return openvino.Tensor(np.array([prompt], np.int64))


def config(count):
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = count
    config.ignore_eos = True
    config.do_sample = False
    return config


def precision_in_use():
    """Returns the precision of the compiled model, which is F32 if the processor has no BF16 instructions."""
    model = openvino.Core().compile_model(f"{job.FOLDER}/openvino_model.xml", "CPU", PROPERTIES)
    return model.get_property("INFERENCE_PRECISION_HINT").to_string()


if __name__ == "__main__":
    # Beside the precision of execution stands the format of compressed weights, such as int8.
    precision = " ".join([*filter(None, [os.environ.get("PEERS_WEIGHTS")]), precision_in_use()])
    report = job.Report("OpenVINO GenAI", openvino.__version__.split("-")[0], precision)
    job.measure(report, Engine())
