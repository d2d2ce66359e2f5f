"""The only importer of the extension."""

from pyprefopt._rust import Packer as Packer
from pyprefopt._rust import select_top_k as select_top_k
from pyprefopt._rust import top_k_mask as top_k_mask
