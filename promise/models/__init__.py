"""The nets and their parts: backbones, the frozen SAM, the Auto-Prompting Module, Incremental Pattern Shifting."""
