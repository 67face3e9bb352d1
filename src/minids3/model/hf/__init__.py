"""Checkpoints of Hugging Face's ``deepseek_v3`` in and out; transformers itself is not needed.

``save_hf`` writes what ``DeepseekV3ForCausalLM.from_pretrained`` reads and ``load_hf`` reads what
it or the release wrote: per-expert names, sharded safetensors with an index, BF16, FP32 or FP8 with
``weight_scale_inv``, the MTP modules as layers behind the last. ``names`` has the layout,
``config`` the fields, ``files`` the reading and writing.
"""

from minids3.model.hf.config import from_hf_config, to_hf_config
from minids3.model.hf.files import load_hf, save_hf
from minids3.model.hf.names import HFTensor, hf_layout

__all__ = ["HFTensor", "from_hf_config", "hf_layout", "load_hf", "save_hf", "to_hf_config"]
