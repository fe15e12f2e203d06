"""The engines that `cpu.py` runs beside ours: their environments, conversions and how each is asked."""
