"""The page where a person moves the net's prompts; knows no flags."""
