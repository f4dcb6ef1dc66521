"""From torch's graph to ONNX operators that give what eager execution gives."""
