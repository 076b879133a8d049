"""A part of the double of vllm."""
