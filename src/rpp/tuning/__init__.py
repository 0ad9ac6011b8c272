"""LoRA tuning of a language model on rankings (paper, section 4.1: Alpaca)."""
