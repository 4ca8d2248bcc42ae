"""How accurate a streamed step is in float32, beside a plain one."""
