"""The only importer of the compiled extension."""

from __future__ import annotations

from pyprefopt._rust import detect_format as detect_format
from pyprefopt._rust import parse_instructions as parse_instructions
from pyprefopt._rust import parse_preferences as parse_preferences
from pyprefopt._rust import split_json as split_json
