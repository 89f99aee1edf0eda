"""The SAM family: backbones, weights, the frozen SAM."""
