"""Text and token ids: tokenizers, chat templates, incremental detokenizing, parsers of tool calls and reasoning."""
