"""Fine-tuning: from a pretrained network to one that certifies."""
