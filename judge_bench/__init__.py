"""What judges of prompts are measured with: attacks with harmless twins, and prompts in known order of quality.

``judge_bench/data/README.md`` is the data's card, ``judge_bench.data`` reads and checks it.
"""
