"""The web page on which a user corrects the prompts of a net."""
