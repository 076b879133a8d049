"""How fast is pccl.kv, and how well does it decide where prompts are prefilled?"""
