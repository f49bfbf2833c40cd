"""The library: multi-level knowledge distillation; works without Prefect, MLflow and DVC."""
