"""Conversations: the chat templates of a model, rendered in a process of their own, and encoded into tokens."""
