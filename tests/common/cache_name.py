"""What the installed transformers calls the cache among a model's arguments, and in its output.

`past_key_values` became `cache` in 5.24, and the old name is to go in 5.40: from then on it would be taken for an
argument of nobody's, and be ignored. So tests use neither.
"""

import inspect

from transformers import LlamaForCausalLM

CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
