"""rft: sample many answers, keep the right ones, fine-tune on them, and compare with SFT."""

__version__ = "0.1.0"
