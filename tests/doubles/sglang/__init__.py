"""A double of SGLang, as far as its disaggregation is documented."""
