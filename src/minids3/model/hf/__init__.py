"""Checkpoints of Hugging Face's ``deepseek_v3`` in and out; transformers itself is not needed.

``load_hf`` reads what ``save_hf``, transformers or the release wrote: per-expert names, sharded
safetensors with an index, BF16, FP16, FP32 or FP8 with ``weight_scale_inv`` in blocks of any size,
the MTP modules as layers after the last one. ``names`` has the layout, ``config`` the fields,
``files`` the reading and writing.

``DeepseekV3ForCausalLM.from_pretrained`` reads what ``save_hf`` writes, with the MTP modules left
out. The FP8 format is the release's, and there transformers (5.24, dequantising, which needs
accelerate) is less than a full reader: it infers the size of a block from the number of scales. So
it is right where every side of every FP8 matrix is a multiple of 128 or at most 128. Elsewhere it
refuses the folder (side 257: 3 scales) or reads **wrong numbers without a word** (side 192: 2
scales, taken for blocks of 96).
"""

from minids3.model.hf.config import from_hf_config, to_hf_config
from minids3.model.hf.files import load_hf, save_hf
from minids3.model.hf.names import HFTensor, hf_layout

__all__ = ["HFTensor", "from_hf_config", "hf_layout", "load_hf", "save_hf", "to_hf_config"]
