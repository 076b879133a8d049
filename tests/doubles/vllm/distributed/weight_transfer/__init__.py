"""A double of vllm.distributed.weight_transfer, by its documentation (v0.25)."""
