"""KV caches across datacenters: where prompts are prefilled, and how their KV cache gets to the decoder."""
