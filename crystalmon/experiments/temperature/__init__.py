"""Entropy and heat capacity over temperature."""
