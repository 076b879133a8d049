"""What prefill costs, what clusters and link carry together, and where one request goes."""
