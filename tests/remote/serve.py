"""Runs llama.cpp's HTTP server from the xllamacpp wheel: python serve.py MODEL.gguf PORT SLOTS CONTEXT

Prints "ready" once it listens, and ends when its standard input ends. The KV cache and attention are F32, and
there is no cache beyond the slots, so that results depend on little but the prompt.
"""

import os
import sys

import xllamacpp


def main(model, port, slots, context):
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"erank"}
    params.hostnames = ["127.0.0.1"]
    params.port = int(port)
    params.n_parallel = int(slots)
    params.n_ctx = int(slots) * int(context)
    params.cache_type_k = params.cache_type_v = 0  # F32
    params.cache_ram_mib = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.warmup = False
    # Flash attention computes with F16 numbers, even if the cache is F32.
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.ui = False
    params.kv_unified = False
    server = xllamacpp.Server(params)
    print("ready", server.listening_address, flush=True)
    sys.stdin.read()
    # Otherwise the server's threads would keep the process alive.
    os._exit(0)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
