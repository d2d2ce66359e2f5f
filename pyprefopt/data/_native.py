"""The only importer of the extension."""

from pyprefopt._rust import Packer, select_top_k, top_k_mask

__all__ = ["Packer", "select_top_k", "top_k_mask"]
