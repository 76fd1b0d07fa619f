"""Fine-tuning: data (layout and steps), model (base and LoRA), loop, checkpoint, launch."""
