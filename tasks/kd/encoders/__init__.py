"""Encoders: their folders, families and inner layers."""
