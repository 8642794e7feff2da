"""To and from the wider world: models and tokenizers of Hugging Face transformers, tiktoken and GPT-2."""
