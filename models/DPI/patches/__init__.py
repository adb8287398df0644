"""Methods on models of transformers. Nothing outside this folder knows how its models work inside.

Llama.py         what a configuration must be like, installing, uninstalling, observing
families.py      the architectures, and how each differs from Llama
rotary.py        their rotary schemes, and the frequencies
local.py         layers that attend locally, over bands
forward_pass.py  a call of the base model as a value; the attention and mask functions that transformers finds by name
modules.py       a module's method replaced; the rotary module that rotates nothing
caches.py        which method a cache's keys belong to
decoding.py      static caches, whose decoding steps are replayed from a CUDA graph
"""
