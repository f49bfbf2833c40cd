"""The library: multi-level knowledge distillation. Works with Prefect, MLflow and DVC uninstalled."""
