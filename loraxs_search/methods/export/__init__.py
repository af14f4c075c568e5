"""Export formats: what `pull --format` makes of an adapter. Reading this package needs no torch.

_base.py    the contract
folder.py   makes an export once, and keeps it beside the adapter; plain LoRA, for PEFT, vLLM and other servers; a whole
            model, for transformers
gguf.py     plain LoRA for llama.cpp, with a Modelfile for Ollama
onnx.py     the base as a graph, whose inputs are the adapter, for onnxruntime

A distribution adds a format by an entry point of the group `loraxs_search.export_formats`: its name to its class.
"""
