"""A corpus to try vecbridge with: 6,000 definitions of WordNet 3.0 (licence in WORDNET-LICENSE.txt).

One JSON object a line with the keys id, words, text, part_of_speech, topic and senses, as in the complete
117,659. Chosen are definitions of 40 characters or more, within each topic those whose word occurs most
often in all definitions: 1,000 of artifacts, 800 of animals, 500 of food, and of every other topic in
proportion to the square root of its size.
"""

from __future__ import annotations

from pathlib import Path

GLOSSES = Path(__file__).with_name("glosses.jsonl.gz")
