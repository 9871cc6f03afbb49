"""Quantises a GGUF file with llama.cpp: llama_cpp_quantize.py FILE.gguf OUT.gguf q8_0|q4_0|q4_k_m"""

import ctypes
import os
import sys

import llama_cpp as c

FILE_TYPES = {
    "q8_0": c.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": c.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_k_m": c.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}

source, target, file_type = sys.argv[1:]
parameters = c.llama_model_quantize_default_params()
parameters.ftype = FILE_TYPES[file_type]
# Random weights have no importance matrix, and every tensor gets the type that a model of this size would get.
code = c.llama_model_quantize(source.encode(), f"{target}.part".encode(), ctypes.byref(parameters))
assert code == 0, f"llama.cpp cannot quantise {source}: {code}"
os.rename(f"{target}.part", target)
