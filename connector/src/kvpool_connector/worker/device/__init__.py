"""Copies between KV memory and arena rows, one module per kind of device."""
