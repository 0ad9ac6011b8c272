"""LoRA adapters that teach a language model to rank (paper, section 4.1: Alpaca)."""
