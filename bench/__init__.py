"""The benchmark: Turnstone beside the usual way of relaying an LLM's answer, in one run on one machine."""
