"""What writes captions: WD14 taggers, BLIP and other image-to-text models, and how they get here. Worker only."""
