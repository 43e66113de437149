"""Targeted-SAM for erasing hallucinations from LLaVA (SARE, arXiv 2601.16527), in a module small
enough to hold in the head.
"""
